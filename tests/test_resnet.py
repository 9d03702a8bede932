"""The residual network: shapes in both directions, what it refuses, what it is before training, and where its codes come from."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diabolo.models.resnet import Residual, ResNet

torch.set_num_threads(1)
#: Image, code, widths; codes are grids or vectors.
SHAPES = [
    ((1, 4, 4), (3, 2, 2), (4,)),
    ((3, 8, 12), (2, 2, 3), (4, 6)),
    ((2, 6, 10), (5, 3, 5), (4,)),
    ((1, 8, 8), (4, 1, 1), (4, 4, 4)),
    ((1, 8, 8), (4,), (4, 4, 4)),
    ((3, 8, 12), (7,), (4, 6)),
]


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def trained(network: ResNet) -> ResNet:
    """As if it had been trained: no convolution is 0 as at the start; float64, in evaluation mode."""
    for part in network.modules():
        if isinstance(part, torch.nn.Conv2d) and not part.weight.any():
            torch.nn.init.normal_(part.weight, std=0.1)
    return network.double().eval().requires_grad_(False)


def patchwise(channels: int, code: int, sides: tuple[int, int], down: bool, **given: object) -> ResNet:
    """A network without blocks between an image and a grid of a quarter of its sides."""
    image, grid = (channels, *sides), (code, sides[0] // 4, sides[1] // 4)
    shapes = (image, grid) if down else (grid, image)
    return ResNet(*shapes, widths=(4, 6), blocks=0, **given).double().requires_grad_(False)


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize(("image", "code", "widths"), SHAPES, ids=str)
def test_both_directions_have_the_shapes_asked_for(image, code, widths, shortcut):
    for given, made in ((image, code), (code, image)):
        network = ResNet(given, made, widths=widths, shortcut=shortcut)
        x = torch.randn(3, *given)
        assert (network.in_shape, network.out_shape) == (given, made)
        assert network(x).shape == (3, *made)
        trained(network)
        x = x.double().requires_grad_()
        assert torch.autograd.grad(network(x).square().sum(), x)[0].flatten(1).abs().sum(1).gt(0).all()


@pytest.mark.parametrize(
    ("image", "code", "widths", "why"),
    [
        ((1, 7, 7), (3, 3, 3), (4,), "divide the sides by 2; the image's are 7x7"),
        ((1, 6, 6), (3,), (4, 4), "divide the sides by 4; the image's are 6x6"),
        ((1, 8, 8), (3, 2, 2), (4,), "divide the sides by 2; the image's are 8x8 and the code's are 2x2"),
        ((16,), (3,), (4,), "take mlp for vectors"),
        ((1, 8, 8), (3, 4, 4), (), "at least one number"),
        ((1, 8, 8), (3, 4, 4), (0,), "each at least 1"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_in_both_directions(image, code, widths, why):
    for given, made in ((image, code), (code, image)):
        with pytest.raises(ValueError, match=why):
            ResNet(given, made, widths=widths)


def test_an_untrained_block_adds_a_constant_to_each_channel():
    block, h = Residual(5, "relu"), torch.rand(2, 5, 4, 4)
    last = [part for part in block.modules() if isinstance(part, torch.nn.Conv2d)][-1]
    assert torch.equal(block(h), h + last.bias.view(5, 1, 1))
    torch.nn.init.ones_(last.weight)
    assert not torch.allclose(block(h), h + last.bias.view(5, 1, 1))


def moved(x: Tensor, by: int) -> Tensor:
    return x.roll((by, 2 * by), (2, 3))


def test_a_code_moves_with_its_image_away_from_the_borders():
    network, x = trained(ResNet((2, 64, 64), (3, 16, 16), widths=(4, 6))), torch.randn(1, 2, 64, 64).double()
    inside = (..., slice(6, -5), slice(6, -5))
    torch.testing.assert_close(network(moved(x, 4))[inside], moved(network(x), 1)[inside], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(network(moved(x, 2))[inside], network(x)[inside])
    decoder, z = trained(ResNet((3, 16, 16), (2, 64, 64), widths=(4, 6))), torch.randn(1, 3, 16, 16).double()
    inside = (..., slice(24, -20), slice(24, -20))
    torch.testing.assert_close(decoder(moved(z, 1))[inside], moved(decoder(z), 4)[inside], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("down", [True, False])
def test_without_blocks_it_is_one_affine_map_of_each_patch(down, shortcut):
    """Each place of the grid and its 4x4 pixels are what the same weights make of that patch alone, and the map is affine."""
    whole = patchwise(2, 3, (12, 8), down, shortcut=shortcut)
    alone = patchwise(2, 3, (4, 4), down, shortcut=shortcut)
    alone.load_state_dict(whole.state_dict())
    x, y = torch.randn(2, 4, *whole.in_shape, dtype=torch.float64).unbind()
    inside, outside = (4, 1) if down else (1, 4)
    found = whole(x)
    for i in range(3):
        for j in range(2):
            patch = x[:, :, inside * i : inside * (i + 1), inside * j : inside * (j + 1)]
            place = found[:, :, outside * i : outside * (i + 1), outside * j : outside * (j + 1)]
            torch.testing.assert_close(place, alone(patch), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole(x + y), found + whole(y) - whole(torch.zeros_like(x)), rtol=1e-12, atol=1e-12)


def test_the_shortcut_of_a_grid_is_added_and_a_vector_has_none():
    with_it, without = (
        sum(p.numel() for p in patchwise(2, 3, (8, 8), True, shortcut=s).parameters()) for s in (True, False)
    )
    assert with_it - without == 2 * 16 * 3 + 3  # a patch of 4x4 pixels of two channels -> three values, affine
    sizes = [sum(p.numel() for p in ResNet((2, 8, 8), (5,), (4,), shortcut=s).parameters()) for s in (True, False)]
    assert sizes[0] == sizes[1]
