"""score, embed, reconstruct, interpolate, traverse, clean: known answers, order, what files are refused, what is overwritten."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

import diabolo
from diabolo import cli, inspection, training
from diabolo.config import resolve
from diabolo.data import Loader, from_tensor
from diabolo.data.tensor import examples_like
from diabolo.errors import DataError, UsageError
from diabolo.evaluation import Settings, evaluate
from diabolo.runs import Run, write_json
from known import tiny_images, tiny_vectors

torch.set_num_threads(1)
SMALL = ["model.latent=3", "model.encoder.width=8", "model.decoder.width=8", "train.epochs=3", "train.keep=last"]
PICTURES = ("reconstruct", "interpolate", "traverse")
VERBS = ("compare", "score", "embed", *PICTURES, "clean")


def made(path, data, *overrides):
    config = resolve("vae", [*SMALL, "train.curve=none", "data=tensor", *overrides]).config
    run = training.train(config, out=path, data=data, device="cpu")
    evaluate(run, Settings(k=5, images=10, curve_images=0, probes=False), data=data, device="cpu")
    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run on the built-in digits, which a verb can load by itself, evaluated with the defaults that score uses."""
    config = resolve("vae", [*SMALL, "train.epochs=20"]).config
    run = training.train(config, out=tmp_path_factory.mktemp("digits") / "run", device="cpu")
    evaluate(run, Settings(k=5, images=10, curve_images=0, probes=False), device="cpu")
    return run


@pytest.fixture
def copied(digits, tmp_path):
    return Run(shutil.copytree(digits.path, tmp_path / "copied"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stored(digits):
    """The run's test split as (N, 1, 8, 8), as it is stored."""
    return diabolo.data.load("digits", digits.config.data.params).test.values.numpy()


def say(*words):
    return cli._run([str(word) for word in words])


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return header, np.array(rows, dtype=float)


# ------------------------------------------------------------------------------------------------ score
def test_scores_of_the_test_split_are_its_evaluation(digits, tmp_path):
    assert say("score", digits.path, "--split", "test", "--out", "s.csv", "--device", "cpu") == 0
    header, rows = table(tmp_path / "s.csv")
    assert header == ["index", "elbo", "distortion", "rate", "percentile"]
    known = digits.per_image()
    assert (rows[:, 0] == np.arange(len(known["elbo"]))).all()
    for column, name in ((1, "elbo"), (2, "distortion"), (3, "kl")):
        assert np.abs(rows[:, column] - known[name].numpy()).max() < 1e-6
    assert np.abs(rows[:, 1] + rows[:, 2] + rows[:, 3]).max() < 2e-6


def test_the_percentile_of_a_test_image_is_its_rank(digits):
    given = inspection.examples(digits, None, "test")
    scores = inspection.score(digits, given)
    n = len(scores.elbo)
    rank = 1 + scores.elbo.argsort().argsort()
    assert torch.equal(scores.percentile, 100 * rank.double() / n)
    assert scores.percentile[scores.elbo.argmax()] == 100
    assert scores.percentile[scores.elbo.argmin()] == 100 / n


def test_percentiles_count_ties_and_reach_both_ends():
    found = inspection.percentiles(torch.tensor([-9.0, 1, 2, 2.5, 9]), torch.tensor([3.0, 2, 2, 1]))
    assert found.tolist() == [0, 25, 75, 75, 100]


def test_a_file_of_the_test_images_scores_as_the_test_split(digits, stored, tmp_path):
    np.save("x.npy", stored)
    np.savez("x.npz", x=stored, y=np.zeros(3))
    for name in ("x.npy", "x.npz"):
        assert say("score", digits.path, name, "--out", f"{name}.csv", "--device", "cpu") == 0
        _, rows = table(tmp_path / f"{name}.csv")
        assert np.abs(rows[:, 1] - digits.per_image()["elbo"].numpy()).max() < 1e-6
        assert rows[:, 4].max() == 100


def test_noise_scores_below_the_test_images(digits, tmp_path):
    np.save("noise.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8))
    assert say("score", digits.path, "noise.npy", "--out", "s.csv", "--device", "cpu") == 0
    assert table(tmp_path / "s.csv")[1][:, 4].max() < 5


def test_without_an_evaluation_the_reference_is_computed(copied):
    given = inspection.examples(copied, None, "test")
    before = inspection.score(copied, given)
    (copied.path / "evaluation.json").unlink()
    after = inspection.score(copied, given)
    assert torch.equal(before.percentile, after.percentile) and torch.equal(before.elbo, after.elbo)


def test_an_evaluation_of_another_split_is_no_reference(copied):
    evaluate(copied, Settings(split="train", k=2, images=2, curve_images=0, probes=False), device="cpu")
    scores = inspection.score(copied, inspection.examples(copied, None, "test"))
    assert scores.percentile.max() == 100 and len(scores.elbo) == copied.env["data"]["splits"]["test"]
    assert scores.percentile.unique().numel() == len(scores.elbo)


# ------------------------------------------------------------------------------------------------ embed
def test_codes_are_posterior_means_in_the_order_of_the_input(digits, stored, tmp_path):
    order = np.random.default_rng(0).permutation(len(stored))
    np.save("mixed.npy", stored[order])
    assert say("embed", digits.path, "--out", "all.npz", "--device", "cpu") == 0
    assert say("embed", digits.path, "mixed.npy", "--out", "mixed.npz", "--device", "cpu") == 0
    assert say("embed", digits.path, "mixed.npy", "--out", "mixed.csv", "--device", "cpu") == 0
    straight, mixed = np.load("all.npz"), np.load("mixed.npz")
    known = digits.per_image()["mean"].numpy()
    assert np.abs(straight["mean"] - known).max() < 1e-5
    assert np.abs(mixed["mean"] - known[order]).max() < 1e-5
    assert np.abs(mixed["mean"] - known).max() > 0.1, "an unshuffled answer would be wrong here"
    assert (mixed["index"] == np.arange(len(order))).all()
    header, rows = table(tmp_path / "mixed.csv")
    assert header == ["index", "z0", "z1", "z2"]
    assert np.allclose(rows[:, 1:], mixed["mean"], rtol=1e-7) and (rows[:, 0] == mixed["index"]).all()


# ------------------------------------------------------------------------------------------------ how a file is read
def test_binarized_runs_draw_the_same_pixels_as_their_test_split(tmp_path):
    data = tiny_images(60, binarize=True)
    run = made(tmp_path / "run", data, "model.likelihood=bernoulli")
    np.save("grey.npy", data.test.values.numpy())
    given = inspection.examples(run, tmp_path / "grey.npy", "test")
    assert given.loader().draw_hash == Loader(data, "test").draw_hash
    scores = inspection.score(run, given)
    assert torch.allclose(scores.elbo, run.per_image()["elbo"], atol=1e-6, rtol=0)
    zeros_and_ones = next(iter(given.loader().ordered(100))).x
    again = Loader(examples_like(zeros_and_ones, data.spec, binarize=True), "test")
    assert torch.equal(next(iter(again.ordered(100))).x, zeros_and_ones)


def test_real_runs_get_values_as_they_are():
    """Whole numbers would be read as grey levels by themselves; a model of real numbers means the numbers."""
    spec = tiny_vectors(40, 4).spec
    x = np.array([[0.0, 1, 2, 200], [3, 4, 5, 6]], dtype=np.float32)
    assert torch.equal(examples_like(x, spec).test.values, torch.from_numpy(x))
    ones = np.ones((2, 4), dtype=np.int64)
    assert torch.equal(examples_like(ones, spec).test.values, torch.ones(2, 4))


def test_grey_runs_read_levels_fractions_and_channels_as_from_tensor_does():
    spec = tiny_images(40, (3, 6, 6)).spec
    levels = np.random.default_rng(0).integers(2, 256, (5, 6, 6, 3), dtype=np.uint8)
    wanted = next(iter(Loader(from_tensor(levels, test=0.6, validation=0), "test").ordered(9))).x
    found = [next(iter(Loader(examples_like(x, spec), "test").ordered(9))).x for x in (levels, levels / 255)]
    assert torch.allclose(found[0], found[1], atol=1e-7) and found[0].shape == (5, 3, 6, 6)
    assert {tuple(x.flatten().tolist()) for x in wanted} <= {tuple(x.flatten().tolist()) for x in found[0]}
    assert torch.equal(found[0][2, 1], torch.from_numpy(levels[2, :, :, 1]).float() / 255)


WRONG = {
    "another shape": np.zeros((3, 1, 7, 7), np.uint8),
    "no examples": np.zeros((0, 1, 8, 8), np.uint8),
    "NaN": np.full((3, 1, 8, 8), np.nan),
    "real numbers": np.full((3, 1, 8, 8), -1.5),
    "objects": np.array([{"a": 1}], dtype=object),
    "text": np.array(["a", "b"]),
}


@pytest.mark.parametrize("what", WRONG)
def test_arrays_that_do_not_fit_are_refused(what, digits, tmp_path, capsys):
    np.save("x.npy", WRONG[what], allow_pickle=True)
    assert say("score", digits.path, "x.npy", "--out", "s.csv") == 3
    assert "x.npy" in capsys.readouterr().err
    assert not (tmp_path / "s.csv").exists()


def header_of(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def archive(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


CORRUPT = {
    "empty.npy": b"",
    "text.npy": b"no array at all, but long enough to be read",
    "cut.npy": header_of((10, 8, 8)) + b"\0" * 100,
    "vast.npy": header_of((10**9, 10**9)) + b"\0" * 100,
    "text.npz": b"no archive",
    "cut.npz": archive(x=np.zeros((4, 8, 8)))[:-40],
    "none.npz": archive(),
    "two.npz": archive(a=np.zeros((4, 8, 8)), b=np.zeros((4, 8, 8))),
    "objects.npz": archive(x=np.array([{}], dtype=object)),
    "picture.png": b"\x89PNG",
}


@pytest.mark.parametrize("name", CORRUPT)
def test_files_that_are_no_arrays_are_refused(name, digits, tmp_path, capsys):
    (tmp_path / name).write_bytes(CORRUPT[name])
    assert say("embed", digits.path, name, "--out", "c.npz") == 3
    err = capsys.readouterr().err
    assert name in err and "Traceback" not in err
    assert say("embed", digits.path, "not-there.npy", "--out", "c.npz") == 3
    assert not (tmp_path / "c.npz").exists()


def test_a_run_whose_data_were_in_memory_takes_a_file(tmp_path):
    data = tiny_images(60)
    run = made(tmp_path / "run", data)
    assert say("score", run.path, "--out", "s.csv") == 3
    np.save("x.npy", data.test.values.numpy())
    assert say("score", run.path, "x.npy", "--out", "s.csv") == 0
    assert say("reconstruct", run.path, "x.npy") == 0


# ------------------------------------------------------------------------------------------------ pictures
def test_reconstructions_stand_below_what_they_reconstruct(digits):
    given = inspection.examples(digits, None, "test")
    model = digits.model()
    pairs = inspection.reconstructions(model, given.loader(), n=5, seed=1)
    assert pairs.shape == (2, 5, 1, 8, 8)
    assert torch.equal(pairs[1], model.reconstruct(pairs[0]).mean[0])
    lines = inspection.in_lines(pairs, 2)
    assert torch.equal(lines[2], pairs[0, 2:4]) and torch.equal(lines[3], pairs[1, 2:4])
    assert torch.equal(lines[4, 0], pairs[0, 4]) and bool((lines[4:, 1] == 1).all())


def test_interpolations_start_and_end_at_the_reconstructions(digits):
    given = inspection.examples(digits, None, "test")
    model = digits.model()
    rows = inspection.interpolations(model, given.loader(), steps=5, pairs=3, seed=0)
    assert rows.shape == (3, 7, 1, 8, 8)
    for end, inner in ((0, 1), (-1, -2)):
        assert torch.allclose(rows[:, inner], model.reconstruct(rows[:, end]).mean[0], atol=1e-6)
    ends = model.encode(rows[:, 0]).mean, model.encode(rows[:, -1]).mean
    assert torch.allclose(rows[:, 3], model.decode((0.5 * (ends[0] + ends[1]))[None]).mean[0], atol=1e-6)
    with pytest.raises(UsageError, match="examples"):
        inspection.interpolations(model, given.loader(), steps=5, pairs=1000, seed=0)


def test_traversals_move_one_dimension_a_row_the_most_active_first(digits):
    model = digits.model()
    codes = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 5.0, 1.0])
    rows, order, activity = inspection.traversals(model, codes, steps=5, span=2)
    assert order.tolist() == [1, 2, 0] and activity.tolist() == sorted(activity.tolist(), reverse=True)
    centre = model.decode(torch.zeros(1, 1, 3)).mean[0, 0]
    for row, j in enumerate(order.tolist()):
        z = torch.zeros(3)
        z[j] = -2
        assert torch.allclose(rows[row, 0], model.decode(z[None, None]).mean[0, 0], atol=1e-6)
        assert torch.allclose(rows[row, 2], centre, atol=1e-6)


@pytest.mark.parametrize(
    ("verb", "size"), [("reconstruct", (143, 17)), ("interpolate", (107, 71)), ("traverse", (98, 26))]
)
def test_pictures_are_written_and_equal_each_time(verb, size, digits, tmp_path):
    assert say(verb, digits.path, "--out", "a.png") == 0
    assert say(verb, digits.path, "--out", "b.png") == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == size


def test_vectors_have_no_picture(tmp_path):
    data = tiny_vectors(60)
    run = made(tmp_path / "run", data, "model.likelihood=gaussian")
    np.save("x.npy", data.test.values.numpy())
    for verb in PICTURES:
        words = ("--pairs", "2") if verb == "interpolate" else ()
        assert say(verb, run.path, "x.npy", *words) == 2
    assert say("embed", run.path, "x.npy", "--out", "c.csv") == 0


def test_traverse_as_json(digits, capsys):
    assert say("traverse", digits.path, "--out", "t.png", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(found["order"]) == [0, 1, 2]


# ------------------------------------------------------------------------------------------------ usage
@pytest.mark.parametrize(("verb", "name"), [("score", "o.csv"), ("embed", "o.npz"), *((v, "o.png") for v in PICTURES)])
def test_files_are_not_overwritten_without_saying_so(verb, name, digits, tmp_path, capsys):
    (tmp_path / name).write_text("precious", encoding="utf-8")
    assert say(verb, digits.path, "--out", name) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / name).read_text(encoding="utf-8") == "precious"
    assert say(verb, digits.path, "--out", name, "--overwrite") == 0
    assert b"precious" not in (tmp_path / name).read_bytes()
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    "words",
    [
        ("score", "{}"),
        ("score", "{}", "x.npy", "--split", "test", "--out", "s.csv"),
        ("score", "{}", "--out", "s.txt"),
        ("score", "{}", "--out", "s.csv", "--elbo-samples", "0"),
        ("embed", "{}", "--out", "c.png"),
        ("embed", "{}", "--out", "c.npz", "--split", "tset"),
        ("reconstruct", "{}", "--n", "0"),
        ("interpolate", "{}", "--n", "1"),
        ("interpolate", "{}", "--pairs", "0"),
        ("traverse", "{}", "--span", "0"),
        ("traverse", "{}", "--span", "nan"),
    ],
)
def test_wrong_words_are_usage_errors(words, digits):
    assert say(*(word.format(digits.path) for word in words)) == 2


def test_help_and_refusals_import_no_torch(tmp_path):
    words = [[verb, "--help"] for verb in VERBS] + [
        ["compare", "a"],
        ["compare", "a", "b"],
        ["score", "a", "--out", "s.csv"],
    ]
    code = f"import sys\nfrom diabolo import cli\nfor words in {words!r}: cli._run(words)\nsys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()


# ------------------------------------------------------------------------------------------------ clean
def test_clean_lists_then_removes_the_states_of_finished_runs_only(digits, tmp_path, capsys):
    root = tmp_path / "runs"
    for name in ("done", "deep/er/done", "stopped", "no-weights"):
        shutil.copytree(digits.path, root / name)
    write_json(root / "stopped/status.json", {"state": "interrupted", "exit_code": 130})
    (root / "no-weights/weights.safetensors").unlink()
    (root / "stray/state/step-000001").mkdir(parents=True)
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".lock"}
    assert say("clean") == 0
    assert "2 state folders" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in before} == before
    assert say("clean", "--yes", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    gone = {root / name / "state" for name in ("done", "deep/er/done")}
    assert {tmp_path / path for path in found["removed"]} == gone and len(found["found"]) == 2
    kept = {p: content for p, content in before.items() if not gone & set(p.parents)}
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".lock"} == kept
    assert len(kept) < len(before) and not any(path.exists() for path in gone)
    assert say("score", root / "done", "--out", "s.csv") == 0, "the run is whole without its state"


def test_clean_leaves_what_is_not_its_own(copied, tmp_path):
    note = copied.path / "state" / "note.txt"
    note.write_text("mine", encoding="utf-8")
    [(folder, size)] = inspection.spare_states(tmp_path)
    assert size > 0
    assert inspection.remove_states([folder]) == [folder]
    assert note.read_text(encoding="utf-8") == "mine" and list(folder.iterdir()) == [note]


def test_clean_leaves_a_run_that_is_being_worked_on(copied):
    [(folder, _)] = inspection.spare_states(copied.path)
    with FileLock(copied.path / ".lock"):
        assert inspection.remove_states([folder]) == []
    assert folder.is_dir()
    write_json(copied.path / "status.json", {"state": "running", "exit_code": None})
    assert inspection.remove_states([folder]) == [] and folder.is_dir()


def test_clean_follows_no_link(copied, tmp_path):
    real = tmp_path / "elsewhere"
    (copied.path / "state").rename(real)
    (copied.path / "state").symlink_to(real, target_is_directory=True)
    assert inspection.spare_states(tmp_path) == []
    with pytest.raises(DataError):
        inspection.read_array(tmp_path)
    assert say("clean", "not-there") == 3
