"""Trained models of the package: packed from a run, the numbers of their rounded weights, nothing written into the package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import diabolo
from diabolo import cli, compression, packaged, registry, runs, sampling
from diabolo.config import preset_names, read_preset, resolve
from diabolo.data import from_tensor
from diabolo.errors import DataError, UsageError
from diabolo.evaluation import Settings, evaluate
from diabolo.fitted import load_prior, model_of, names
from diabolo.models.build import build_model
from diabolo.prior_config import preset_names as prior_presets
from diabolo.prior_config import resolve_prior
from diabolo.training import train
from known import model_config, tiny_images
from test_sampling_table import Toy

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tools")]

import pack_pretrained as packing  # noqa: E402

torch.set_num_threads(1)
CPU = torch.device("cpu")
SMALL = Settings(k=0, elbo_samples=2, curve_images=0, probes=False)
NETWORK = ("model.latent=2,2,2", "model.encoder.widths=4,4", "model.decoder.widths=4,4", "train.compile=off")
FAST = ("data=digits", "train.epochs=1", "train.batch=256", "train.precision=fp32")
FLOW = ("train.epochs=1", "train.batch=500", "prior.width=8", "prior.depth=1", "prior.heads=2", "prior.steps=2")
DENSE = ["prior=mixture", "prior.components=1"]
PRIORS = {"dense": DENSE, "few": ["prior=flow_matching", *FLOW, "train.compile=off"]}
NAME = "pretrained:small"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A package without models, for all tests here; features of digits are known."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(packaged, "ROOT", tmp_path_factory.mktemp("package") / "pretrained")
        patched.setitem(registry._CATALOGUE["features"], "toy", Toy)
        yield packaged.ROOT


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """A run on the built-in digits with two priors."""
    out = tmp_path_factory.mktemp("run") / "run"
    train(resolve("cifar10-sharp", [*FAST, *NETWORK]).config, out=out, device="cpu")
    for name, words in PRIORS.items():
        assert cli._run(["fit-prior", str(out), *words, "--name", name, "--device", "cpu"]) == 0
    return runs.Run(out)


@pytest.fixture(scope="module")
def packed(run, root):
    asked = packing.Asked(run=run.path, name="small", priors=tuple(PRIORS), guidance=2.0, n=100, features="toy")
    return packing.pack(asked, SMALL, command="python tools/pack_pretrained.py ...")


@pytest.fixture
def say(packed, monkeypatch, tmp_path, capsys):
    """Runs a verb in an empty folder; what the package holds is the same afterwards."""
    monkeypatch.chdir(tmp_path)
    before = contents(packed)
    capsys.readouterr()

    def said(*words: object, code: int = 0) -> str:
        found = cli._run([str(word) for word in words])
        out, err = capsys.readouterr()
        assert found == code, err
        return out + err

    yield said
    assert contents(packed) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rounded(module: torch.nn.Module) -> torch.nn.Module:
    state = {name: t.half().float() if t.dtype == torch.float32 else t for name, t in module.state_dict().items()}
    module.load_state_dict(state)
    return module


# ------------------------------------------------------------------------------------------------ the numbers
def test_a_packed_model_is_the_run_s_with_weights_rounded_to_half_precision(run, packed):
    found, expected = diabolo.load(NAME), rounded(run.model())
    for name, t in expected.state_dict().items():
        assert found.state_dict()[name].dtype == t.dtype and torch.equal(found.state_dict()[name], t), name
    assert names(runs.Run(NAME)) == list(PRIORS)  # the last is drawn from, whenever its file was made
    for name in PRIORS:
        expected.prior = rounded(load_prior(run.path / "priors" / name / "weights.safetensors"))
        y = torch.arange(10)
        drawn = sampling.means(model_of(runs.Run(NAME), name), 10, 0, y, guidance=2.0 if name == "few" else 1.0)
        assert torch.equal(drawn, sampling.means(expected, 10, 0, y, guidance=2.0 if name == "few" else 1.0)), name


def test_the_numbers_of_about_json_are_those_of_the_packed_weights(run, packed, say):
    about = packaged.about(packed)
    found = evaluate(NAME, SMALL, device="cpu")
    assert about["result"]["PSNR at z = mu"] == packing.entry(found["psnr"])
    assert about["result"]["ELBO"] == packing.entry(found["elbo"])
    kept = runs.Run(NAME).evaluation()
    assert kept["about"]["weights_sha256"] == runs.sha256(packed / "weights.safetensors")
    assert evaluate(run, SMALL, device="cpu")["elbo"]["value"] != found["elbo"]["value"]
    assert set(about["priors"]["dense"]["result"]) == {
        "rate",
        "asked class seen in",
        "coverage",
        "Frechet distance",
        "memorised",
    }
    assert "rate" not in about["priors"]["few"]["result"]
    assert about["priors"]["few"]["drawn"].startswith("decoder means, z ~ p(z | y), class each, guidance 2; prior: few")


def test_about_json_says_how_the_model_came_to_be(run, packed):
    about = packaged.about(packed)
    sharp = resolve("cifar10-sharp", [*FAST, *NETWORK]).config
    command = about["commands"][0].split()
    assert command[:3] == ["diabolo", "train", "cifar10-sharp"]
    assert resolve("cifar10-sharp", command[3:]).config == sharp == run.config
    fitted = about["priors"]["few"]["command"].split()
    assert fitted[:3] == ["diabolo", "fit-prior", "RUN"] and fitted[-2:] == ["--name", "few"]
    assert resolve_prior(fitted[3:-2], "cifar10-sharp") == resolve_prior(PRIORS["few"])
    assert about["priors"]["dense"]["command"] == "diabolo fit-prior RUN prior=mixture prior.components=1 --name dense"
    assert about["commands"][1:] == [
        *(p["command"] for p in about["priors"].values()),
        "python tools/pack_pretrained.py ...",
    ]
    splits = run.env["data"]["splits"]
    assert about["examples_seen"] == splits["train"] == about["priors"]["few"]["examples_seen"]
    assert about["seconds"] >= 0 and about["machine"]["torch"] == torch.__version__ and about["seed"] == 0
    assert about["source_is_of_commit"] is True
    assert set(about["files"]) == set(contents(packed)) - {"about.json"}
    assert not list(packed.rglob("per_image.safetensors")) and not list(packed.rglob("state"))


# ------------------------------------------------------------------------------------------------ the verbs
def test_what_is_made_of_a_pretrained_model_goes_into_the_current_folder(say):
    assert "small-samples.png" in say("sample", NAME, "class=3", "guidance=2", "--n", 4)
    assert "prior: few, fitted" in say("sample", NAME, "--n", 4, "--out", "mine.png")
    for verb in ("reconstruct", "interpolate", "traverse"):
        say(verb, NAME, "--n", 3, *(["--rows", 2] if verb == "traverse" else []))
    say("evaluate", NAME, "--k", 0, "--elbo-samples", 2, "--device", "cpu")
    say("measure", NAME, "prior=dense", "--features", "toy", "--n", 100, "--device", "cpu")
    say("compress", NAME, "codes.dia", "--split", "test", "--device", "cpu")
    say("decompress", NAME, "codes.dia", "back.npy", "--device", "cpu")
    made = {
        "samples.png",
        "reconstructions.png",
        "interpolations.png",
        "traversals.png",
        "samples.json",
        "codec-sd.json",
    }
    made |= {"evaluation.json", "per_image.safetensors"}
    assert {p.name for p in Path.cwd().iterdir()} == {f"small-{x}" for x in made} | {
        "mine.png",
        "codes.dia",
        "back.npy",
    }


def test_the_verbs_that_read_know_pretrained_models(say):
    assert "with its weights, data digits" in say("explain", NAME)
    assert "small" in say("doctor", NAME)
    listed = say("list")
    assert re.search(r"pretrained:small +sharp CIFAR-10.* PSNR at z = mu [\d.]+ dB.*prior dense: rate", listed)
    assert json.loads(say("list", "--json"))["pretrained"]["small"]["seed"] == 0
    say("score", NAME, "--out", "scores.csv", "--elbo-samples", 1)


def test_a_pretrained_model_is_not_worked_on(say, packed):
    for verbs, words in (
        (["fit-prior"], ["fit-prior", NAME, "prior=mixture"]),
        (["evaluate", "report"], ["report", NAME]),
        ([], ["train", "--resume", NAME]),
    ):
        told = say(*words, code=2)
        assert "pretrained:small stays as it is" in told and all(f"diabolo {verb} small" in told for verb in verbs)
    assert "diabolo evaluate small" in say("compare", NAME, NAME, code=3)
    for change in (diabolo.resume, lambda run: compression.codec_path(runs.Run(run), 0).open("rb")):
        with pytest.raises((UsageError, FileNotFoundError)):
            change(NAME)
    shutil.copytree(packed, "copy")
    say("fit-prior", "copy", *DENSE, "--name", "another", "--device", "cpu")
    assert names(runs.Run("copy"))[-1] == "another"


def test_unknown_names_are_refused_with_the_nearest(say):
    for verb in (["sample"], ["explain"], ["doctor"], ["report"], ["train", "--resume"]):
        told = say(*verb, "pretrained:smal", code=2)
        assert 'Did you mean "small"?' in told, verb
    with pytest.raises(UsageError, match="no pretrained model"):
        diabolo.load("pretrained:../small")


# ------------------------------------------------------------------------------------------------ what is refused
@pytest.mark.parametrize("name", ["weights.safetensors", "priors/few/weights.safetensors", "env.json"])
def test_a_file_that_is_not_the_one_that_was_measured_is_refused(packed, monkeypatch, tmp_path, name):
    shutil.copytree(packed, tmp_path / "small")
    monkeypatch.setattr(packaged, "ROOT", tmp_path)
    diabolo.load(NAME)
    path = tmp_path / "small" / name
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DataError, match="is not the file that was measured"):
        diabolo.load(NAME)
    path.unlink()
    with pytest.raises(DataError, match="is not the file that was measured"):
        runs.Run(NAME)


def test_half_precision_is_read_only_where_the_file_says_so(run, packed, tmp_path):
    for source, load in ((".", runs.load_weights), ("priors/few", load_prior)):
        path = packed / source / "weights.safetensors"
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["diabolo"])
        tensors, changed = load_file(path), tmp_path / "changed.safetensors"
        for storage in (None, "bfloat16"):
            save_file(tensors, changed, {"diabolo": json.dumps({**about, "storage": storage})})
            with pytest.raises(DataError, match="does not fit|not stored as it says"):
                load(changed)
        first = next(name for name, t in tensors.items() if t.dtype == torch.float16)
        for other in (tensors[first].float(), tensors[first].double(), tensors[first].bfloat16()):
            save_file({**tensors, first: other}, changed, {"diabolo": json.dumps(about)})
            with pytest.raises(DataError, match="does not fit|not stored as it says"):
                load(changed)


def test_what_cannot_be_packed_is_refused(run, packed, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="exists already"):
        packing.pack(packing.Asked(run=run.path, name="small"))
    monkeypatch.setattr(packaged, "LARGEST", 1000)
    with pytest.raises(UsageError, match="too large for the package"):
        packing._check_size(run.path, packaged.ROOT / "other")
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run/status.json").write_text('{"state": "stopped"}', encoding="utf-8")
    with pytest.raises(UsageError, match="must be finished"):
        packing.pack(packing.Asked(run=tmp_path / "run", name="stopped"))
    shutil.copyfile(run.path / "status.json", tmp_path / "run/status.json")
    config = tmp_path / "run/priors/few/config.json"
    told = json.loads(config.read_text(encoding="utf-8"))
    runs.write_json(config, told | {"train": told["train"] | {"smoke": True}})
    with pytest.raises(UsageError, match="few is not packed\nIt is a smoke run"):
        packing.pack(packing.Asked(run=tmp_path / "run", name="stopped", priors=("few",)))
    runs.write_json(config, told)
    tensors, about = runs.read_weights(run.path / "weights.safetensors")
    first = next(name for name, t in tensors.items() if t.dtype == torch.float32)
    runs.write_described(tmp_path / "run/weights.safetensors", {**tensors, first: tensors[first] + 1e6}, about)
    with pytest.raises(UsageError, match="half precision cannot hold"):
        packing._store(tmp_path / "run", tmp_path / "made")
    with pytest.raises(DataError, match="codes of other weights"):
        packing._belongs(runs.Run(tmp_path / "run"), tmp_path / "made", "few")
    assert packaged.names() == ["small"]


# ------------------------------------------------------------------------------------------------ the package itself
PACKAGE = Path(diabolo.__file__).parent / "pretrained"
MODELS = sorted(path.parent for path in PACKAGE.glob("*/about.json"))


def test_the_models_of_the_package_are_small_and_named_by_folders():
    assert sum(path.stat().st_size for path in PACKAGE.rglob("*") if path.is_file()) <= packaged.LARGEST == 10_000_000
    assert sorted(PACKAGE.glob("*")) == MODELS, "each holds an about.json"


def test_each_model_of_the_package_is_whole():
    for path in MODELS:
        runs.check_pinned(path)
        about = packaged.about(path)
        assert set(about["files"]) == set(contents(path)) - {"about.json"}
        assert {
            "summary",
            "commands",
            "seed",
            "machine",
            "commit",
            "seconds",
            "examples_seen",
            "result",
        } <= about.keys()
        assert about["result"] and not about["commit"].endswith("-dirty"), path.name
        run = runs.Run(path)
        for name in names(run):
            model_of(run, name)


def test_what_the_package_needs_is_declared_as_its_data():
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"pretrained/*/*", "pretrained/*/priors/*/*"' in declared and '"presets/priors/*.toml"' in declared
    done = subprocess.run(
        ["git", "check-attr", "text", "src/diabolo/pretrained/x/config.json"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode or done.stdout.strip().endswith("unset")


# ------------------------------------------------------------------------------------------------ presets
SHARP = [name for name in preset_names() if "-sharp" in name]


@pytest.mark.parametrize("name", SHARP)
def test_a_sharp_preset_trains_on_images_like_its_own(name, tmp_path):
    config = resolve(name, ["train.smoke=true", "train.epochs=1", "train.batch=2", "train.compile=off"]).config
    shape = (1, 28, 28) if name.startswith("fashion") else (3, 32, 32)
    images = torch.randint(0, 256, (6, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    done = diabolo.train(config, images, out=tmp_path / "run", device="cpu", progress=None)
    assert done.status["state"] == "finished"
    assert diabolo.load(done.path).sample(2).mean.shape == (1, 2, *shape)


def test_the_preset_that_was_not_measured_says_so():
    assert read_preset("cifar10-sharp-gpu")["about"]["expected"] == "not measured"


def test_the_prior_of_a_preset_is_taken_where_none_is_named():
    for preset in prior_presets():
        assert preset in preset_names()
        own = resolve_prior([], preset)
        assert own == resolve_prior([f"preset={preset}"]) == resolve_prior([f"preset={preset}"], "vae")
        if own.closed:
            with pytest.raises(UsageError, match=r"train\.epochs means nothing here"):
                resolve_prior(["train.epochs=3"], preset)
        else:
            assert resolve_prior(["train.epochs=3"], preset).train.epochs == 3
        assert resolve_prior([f"prior={own.prior.name}"], preset) == resolve_prior([f"prior={own.prior.name}"])
    assert resolve_prior([], "cifar10-sharp-60").flips and not resolve_prior(["prior=flow_matching"]).flips
    for words, told in (
        (["preset=cifar10-sharp-60", "prior=mixture"], "both name a prior"),
        (["preset=cifar10-sharp-6"], "Did you mean"),
        ([], "no prior is named"),
    ):
        with pytest.raises(UsageError, match=told):
            resolve_prior(words, "vae")


# ------------------------------------------------------------------------------------------------ images of other sizes
def sharp(latent: tuple[int, ...], widths: tuple[int, ...]) -> dict:
    network = {"name": "resnet", "widths": widths, "blocks": 1}
    return model_config(latent=latent) | {"encoder": network, "decoder": network}


@pytest.mark.parametrize("size", [16, 32, 64, 48])
def test_a_refused_size_of_images_names_what_fits(size):
    images = torch.randint(0, 256, (30, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    spec, likelihood = from_tensor(images).spec, {"likelihood": {"name": "gaussian_optimal"}}
    with torch.device("meta"):
        if size == 32:
            build_model(sharp((8, 8, 8), (4, 8)) | likelihood, spec)
            return
        with pytest.raises(UsageError) as caught:
            build_model(sharp((8, 8, 8), (4, 8)) | likelihood, spec)
        remedy, n = caught.value.remedy, size // 4
        assert f"model.latent=8,{n},{n}" in remedy and "data.size=32" in remedy
        build_model(sharp((8, n, n), (4, 8)) | likelihood, spec)
        widths = re.search(r"model.encoder.widths=([\d,]+) model.decoder.widths=\1", remedy)
        assert (widths is None) == (size == 48)
        if widths:
            build_model(sharp((8, 8, 8), tuple(map(int, widths[1].split(",")))) | likelihood, spec)


def test_the_remedy_of_a_refused_size_fits_vectors_and_other_networks_too():
    spec = tiny_images(8).spec
    with pytest.raises(UsageError) as caught, torch.device("meta"):
        build_model(sharp((12,), (4, 4, 4, 4, 4)), spec)
    assert caught.value.remedy == ""
