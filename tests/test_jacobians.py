"""Jacobians: the closed form of one layer, finite differences, linear maps of known singular values; first-layer filters."""

from __future__ import annotations

import math

import pytest
import torch

from diabolo import jacobians
from diabolo.data import Loader, from_tensor
from diabolo.data.spec import DataSpec
from diabolo.errors import UsageError
from diabolo.models.build import build_model
from diabolo.pictures import filters
from known import SIGMAS

torch.set_num_threads(1)
IMAGE = DataSpec(name="known", shape=(1, 4, 4), values="grey")


def model_of(encoder, posterior="dirac", latent=5, spec=IMAGE, seed=0):
    torch.manual_seed(seed)
    config = {
        "latent": latent,
        "encoder": encoder,
        "posterior": {"name": posterior},
        "prior": {"name": "none" if posterior == "dirac" else "standard_normal"},
        "decoder": {"name": "mlp", "width": 8},
        "likelihood": {"name": "gaussian"},
    }
    return build_model(config, spec).double().eval().requires_grad_(False)


def examples(count=7, shape=(1, 4, 4), seed=0):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("activation", ["linear", "sigmoid", "tanh"])
def test_a_layer_has_the_jacobian_of_its_closed_form(activation):
    model, x = model_of({"name": "layer", "activation": activation}), examples()
    h = model.encoder(x)
    slope = {"linear": torch.ones_like(h), "sigmoid": h * (1 - h), "tanh": 1 - h.square()}[activation]
    found = jacobians.jacobians(model, x)
    assert found.shape == (7, 5, 16)
    assert torch.allclose(found, slope[:, :, None] * model.encoder.weight, rtol=0, atol=1e-14)
    squared = jacobians.singular_values(model, x).square().sum(1)
    assert torch.allclose(squared, model.encoder.squared_jacobian(x), rtol=1e-12)


@pytest.mark.parametrize("posterior", ["dirac", "gaussian"])
@pytest.mark.parametrize("encoder", [{"name": "mlp", "width": 9, "activation": "tanh"}, {"name": "conv", "width": 2}])
def test_jacobians_equal_finite_differences(encoder, posterior):
    if encoder["name"] == "conv":
        encoder = {**encoder, "activation": "silu"}
    model, x, step = model_of(encoder, posterior), examples(3), 1e-6
    moved = torch.eye(16, dtype=torch.float64).view(16, 1, 1, 4, 4) * step
    ahead, behind = (torch.stack([model.encode(x + sign * m).mean for m in moved], 2) for sign in (1, -1))
    assert torch.allclose(jacobians.jacobians(model, x), (ahead - behind) / (2 * step), rtol=0, atol=1e-8)


def test_the_spectrum_of_a_linear_code_is_the_one_of_its_matrix(monkeypatch):
    model, x = model_of({"name": "layer", "activation": "linear"}), examples(6)
    scales = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    rows = torch.linalg.qr(torch.randn(16, 5, dtype=torch.float64)).Q.T
    model.encoder.affine.weight.copy_(scales[:, None] * rows)
    monkeypatch.setattr(jacobians, "_HELD", 160)  # two images at a time
    found = jacobians.spectrum(jacobians.singular_values(model, x))
    assert found.mean == pytest.approx(scales.tolist(), rel=1e-12) and found.se == pytest.approx([0] * 5, abs=1e-12)
    assert found.frobenius == pytest.approx(scales.norm().item()) and found.n == 6


def test_means_and_standard_errors_of_a_spectrum():
    values = torch.tensor([[4.0, 3.0], [12.0, 5.0]], dtype=torch.float64)
    found = jacobians.spectrum(values)
    assert found.mean == [8, 4] and found.frobenius == (5 + 13) / 2
    assert found.se == pytest.approx([4, 1]) and found.frobenius_se == pytest.approx(4)


def test_a_training_model_is_refused():
    with pytest.raises(ValueError, match="evaluation mode"):
        jacobians.jacobians(model_of({"name": "mlp"}).train(), examples())


def test_the_robustness_of_an_isometric_code_is_known():
    """f(x) = x: ||e|| has mean level sqrt(D) (1 - 1 / 4D), and the spread does not see a shift. 5 sigma, a fixed seed."""
    dimensions, level = 64, 0.1
    spec = DataSpec(name="v", shape=(dimensions,), values="real")
    model = model_of({"name": "layer", "activation": "linear"}, latent=dimensions, spec=spec)
    model.encoder.affine.weight.copy_(torch.eye(dimensions))
    x = 3 + torch.randn(4000, dimensions, generator=torch.Generator().manual_seed(5))
    loader = Loader(from_tensor(x, validation=0, test=0.5), "test", dtype=torch.float64)
    known = level * math.sqrt(dimensions) * (1 - 1 / (4 * dimensions))
    for bias in (0.0, 100.0):
        model.encoder.affine.bias.fill_(bias)
        found = jacobians.robustness(model, loader, level=level)
        spread = math.sqrt(dimensions)
        assert abs(found.spread - known / spread) < SIGMAS * found.spread_se + 0.01 * known / spread
        norm = math.sqrt(dimensions * (1 + (3 + bias) ** 2))
        assert found.value == pytest.approx(known / norm, rel=0.01)
        assert found.n == 2000 and found.level == level


def test_the_noise_of_an_image_does_not_depend_on_the_batch(monkeypatch):
    model = model_of({"name": "mlp", "width": 8})
    loader = Loader(from_tensor(examples(40), validation=0, test=0.5), "test", dtype=torch.float64)
    whole = jacobians.robustness(model, loader)
    monkeypatch.setattr(jacobians, "BATCH", 3)
    assert jacobians.robustness(model, loader).value == pytest.approx(whole.value, rel=1e-12)
    assert jacobians.robustness(model, loader, seed=1).value != pytest.approx(whole.value, rel=1e-6)


# ------------------------------------------------------------------------------------------------ filters
@pytest.mark.parametrize("encoder", [{"name": "layer"}, {"name": "mlp", "width": 6}])
def test_filters_are_the_rows_of_largest_norm_about_a_grey_half(encoder):
    model = model_of(encoder, latent=6)
    weight = next(p for name, p in model.encoder.named_parameters() if name.endswith("weight"))
    weight.zero_()
    weight[4, 3], weight[2, 0], weight[2, 5] = 2.0, -1.0, 0.5
    found = filters(model, 3)
    assert found.shape == (3, 1, 4, 4)
    assert found[0].flatten()[3] == 1 and found[0].sum() == 0.5 * 16 + 0.5
    assert found[1].flatten()[0] == 0 and found[1].flatten()[5] == 0.75
    assert (found[2] == 0.5).all(), "no weights are grey, not NaN"


def test_filters_of_convolutions_or_vectors_are_refused():
    vectors = DataSpec(name="v", shape=(16,), values="real")
    for model in (model_of({"name": "conv", "width": 2}), model_of({"name": "mlp"}, spec=vectors)):
        with pytest.raises(UsageError, match="affine map of images"):
            filters(model, 1)
    with pytest.raises(UsageError, match="first layer has 8"):
        filters(model_of({"name": "mlp", "width": 8}), 9)
