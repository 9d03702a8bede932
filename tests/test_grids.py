"""Codes that are grids: the same numbers as those of a vector of as many values, told as places, through every verb."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diabolo import cli, compression, diagnosis, inspection, jacobians, plots, tables
from diabolo.config import resolve
from diabolo.data import Loader
from diabolo.evaluation import Settings, evaluate
from diabolo.listings import plain
from diabolo.models import grids
from diabolo.models.build import build_model
from diabolo.pictures import pictures
from diabolo.report import write_run_report
from diabolo.runs import Run
from diabolo.training import train
from known import model_config, tiny_images

torch.set_num_threads(1)
SMALL = Settings(k=20, images=6, elbo_samples=3, curve_k=(1, 4), curve_images=4, probes=False)
GRID = (3, 2, 2)


# ------------------------------------------------------------------------------------------------ places and sums
def test_dimensions_are_numbered_in_the_order_channel_row_column():
    values = torch.arange(24)
    grid = values.view(2, 3, 4)
    for j in range(24):
        number, place = grids.place(j, (2, 3, 4)).split(" ", 1)
        assert int(number) == j and grid[tuple(json.loads(place.replace("(", "[").replace(")", "]")))] == j
    assert grids.place(7, (20,)) == "7"
    assert grids.per_channel(values, (2, 3, 4)).tolist() == grid.sum((1, 2)).tolist()
    assert grids.per_position(values, (2, 3, 4)).tolist() == grid.sum(0).tolist()
    assert (grids.told((8, 4, 2)), grids.told([8, 4, 2]), grids.told(20)) == ("8x4x2", "8x4x2", "20")
    assert (grids.size_of((8, 4, 2)), grids.size_of(20), plain((8, 4, 2))) == (64, 20, "8,4,2")


# ------------------------------------------------------------------------------------------------ the same numbers
@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two runs with the same weights, between layers that know vectors alone: twelve latent values, and a grid of them."""
    root, dataset = tmp_path_factory.mktemp("pair"), tiny_images(80)
    small = ("model.encoder.width=8", "model.decoder.width=8", "train.epochs=2", "train.batch=16", "train.keep=last")
    runs = {}
    for name, latent in (("vector", "12"), ("grid", "3,2,2")):
        config = resolve("vae", [*small, f"model.latent={latent}"]).config
        runs[name] = train(config, out=root / name, data=dataset, device="cpu")
    return dataset, runs["vector"], runs["grid"]


def test_a_grid_has_the_numbers_of_a_vector_with_the_same_weights(pair):
    dataset, vector, grid = pair
    for settings in (SMALL, Settings(se=0.5, images=4, curve_images=0)):
        a, b = (evaluate(run, settings, data=dataset, device="cpu") for run in (vector, grid))
        channels, sizes = b.pop("kl_per_channel"), [m.pop("kl_per_dimension") for m in (a, b)]
        del a["about"], b["about"]
        assert a == b and "log_p" in a
        assert sizes[0]["values"] == sizes[1]["values"] and sizes[0]["above"] == sizes[1]["above"]
        assert (sizes[0]["shape"], sizes[1]["shape"]) == ([12], list(GRID))
        for parts in (channels["values"], channels["positions"]):
            assert np.sum(parts) == pytest.approx(sum(sizes[1]["values"]), rel=1e-12)
            assert np.sum(parts) == pytest.approx(b["kl"]["value"], rel=1e-6)  # added up in 32 bits
        assert np.shape(channels["positions"]) == GRID[1:] and np.shape(channels["values"]) == GRID[:1]


def test_pictures_codes_and_streams_are_those_of_the_vector(pair):
    dataset, vector, grid = pair
    models, loader = [run.model() for run in (vector, grid)], Loader(dataset, "test")
    codes = [inspection.embed(model, loader) for model in models]
    assert codes[1].shape == (16, *GRID) and torch.equal(codes[0], codes[1].flatten(1))
    rows = [inspection.traversals(m, c, steps=3, span=2, rows=5) for m, c in zip(models, codes)]
    assert rows[1][0].shape == (5, 3, 1, 4, 4) and rows[1][1].numel() == 12
    drawn = [pictures(model, dataset, n=4) for model in models]
    both = {
        "traversals": [found[0] for found in rows],
        "orders": [found[1] for found in rows],
        "generated": [found.generated for found in drawn],
        "lines": [inspection.interpolations(model, loader, steps=3, pairs=2, seed=0) for model in models],
        "jacobians": [jacobians.jacobians(model, loader.values[:2].float() / 255) for model in models],
        "means": [torch.from_numpy(compression.codes(model, loader)[0]) for model in models],
        "deviations": [torch.from_numpy(compression.codes(model, loader)[1]) for model in models],
    }
    for name, (first, second) in both.items():
        assert torch.equal(first, second), name
    points = compression.codes(models[1], loader)[0]
    stored = [compression.decoded(model, points, (1, 4, 4), "grey") for model in models]
    assert (stored[0] == stored[1]).all()


def test_the_posterior_of_a_grid_is_split_into_halves_of_its_channels():
    spec = tiny_images().spec
    model = build_model({**model_config(3, "bernoulli_relaxed", width=8), "latent": GRID}, spec)
    q, h = model.encode(torch.rand(5, 1, 4, 4)), torch.randn(5, 6, 2, 2)
    assert (q.batch_shape, q.event_shape) == ((5,), GRID)
    assert torch.equal(model.posterior(h).mean, h[:, :3])
    torch.testing.assert_close(model.posterior(h).stddev, (0.5 * h[:, 3:]).exp())
    assert model.sample(4).mean.shape == (1, 4, 1, 4, 4)


# ------------------------------------------------------------------------------------------------ what is said of it
def test_many_dimensions_are_drawn_as_one_outline_and_few_as_bars():
    few, many = (plots.dimension_bars(torch.rand(d).tolist(), "KL") for d in (64, 512))
    assert (len(few.axes[0].patches), len(many.axes[0].patches)) == (64, 1)


def test_maps_share_a_scale_from_zero_that_holds_all_of_them():
    maps = np.arange(24.0).reshape(2, 3, 4)
    figure = plots.position_maps(maps, ["5", "7"], "KL")
    shown = [axes for axes in figure.axes if axes.get_images()]
    assert [axes.get_title() for axes in shown] == ["5", "7"]
    for axes, values in zip(shown, maps):
        (image,) = axes.get_images()
        assert image.get_clim() == (0, 23) and (image.get_array() == values).all()
    assert plots.svg(figure, "k", "l") == plots.svg(plots.position_maps(maps, ["5", "7"], "KL"), "k", "l")


@pytest.mark.parametrize(
    ("latent", "used", "remedy"),
    [
        (64, 3, "model.latent=8"),
        ((8, 4, 4), 20, "model.latent=2,4,4"),
        ((8, 2, 2), 6, "model.latent=3,2,2"),
        ((1, 16, 16), 9, "smaller grid"),
    ],
)
def test_the_remedy_for_too_large_a_grid_is_fewer_channels(latent, used, remedy):
    config = SimpleNamespace(model=SimpleNamespace(latent=latent), data=SimpleNamespace(name="digits"))
    patient = SimpleNamespace(config=config, run=SimpleNamespace(path=Path("run")), imports="")
    assert remedy in diagnosis._smaller_latent(patient, used)


# ------------------------------------------------------------------------------------------------ every verb
@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """A residual network around a 4x4x4 grid on the built-in digits, evaluated."""
    small = ("model.latent=4,4,4", "model.encoder.widths=4", "model.decoder.widths=4", "train.compile=off")
    fast = ("data=digits", "train.epochs=1", "train.batch=256", "train.precision=fp32", "train.curve=none")
    run = train(
        resolve("cifar10-sharp", [*fast, *small]).config, out=tmp_path_factory.mktemp("run") / "run", device="cpu"
    )
    evaluate(run, SMALL, device="cpu")
    return run


@pytest.fixture
def said(monkeypatch, tmp_path, capsys):
    """Runs a verb in an empty folder: what it prints."""
    monkeypatch.chdir(tmp_path)

    def say(*words: object) -> str:
        assert cli._run([str(word) for word in words]) == 0
        return capsys.readouterr().out

    return say


def size(picture: str) -> tuple[int, int]:
    with Image.open(picture) as image:
        return image.size


def test_pictures_of_a_grid(residual, said):
    assert "32 most active of 64 latent dimensions" in said("traverse", residual.path, "--n", 3, "--out", "t.png")
    assert size("t.png") == (3 * 9 - 1, 32 * 9 - 1)
    found = json.loads(said("traverse", residual.path, "--n", 3, "--rows", 2, "--out", "u.png", "--json"))
    assert (found["rows"], found["shape"], len(found["order"])) == (2, [4, 4, 4], 64)
    shown = said("traverse", residual.path, "--n", 3, "--rows", 2, "--out", "v.png")
    assert "(channel, row, column)" in shown and grids.place(found["order"][0], (4, 4, 4)) in shown
    for verb in ("sample", "reconstruct", "interpolate"):
        said(verb, residual.path, "--out", f"{verb}.png")
        assert min(size(f"{verb}.png")) > 8


def test_codes_and_streams_of_a_grid(residual, said):
    assert "posterior means of 64 dimensions, 4x4x4" in said("embed", residual.path, "--out", "c.npz")
    said("embed", residual.path, "--out", "c.csv")
    mean, table = np.load("c.npz")["mean"], np.loadtxt("c.csv", delimiter=",", skiprows=1)
    assert mean.shape == (len(table), 4, 4, 4) and np.allclose(mean.reshape(-1, 64), table[:, 1:], rtol=1e-6)
    assert np.allclose(mean.reshape(-1, 64), residual.per_image()["mean"], atol=1e-5)
    for bits in ((), ("--bits", 5)):
        said("compress", residual.path, f"c{len(bits)}.dia", "--split", "test", *bits)
        said("decompress", residual.path, f"c{len(bits)}.dia", f"c{len(bits)}.npy")
        assert np.load(f"c{len(bits)}.npy").shape == (len(table), 1, 8, 8)
    said("score", residual.path, "--elbo-samples", 2, "--out", "s.csv")
    assert len(Path("s.csv").read_text(encoding="utf-8").splitlines()) == 1 + len(table)


def test_what_is_said_of_a_grid(residual, said, tmp_path):
    run = Run(shutil.copytree(residual.path, tmp_path / "run"))
    page = write_run_report(run, pictures(run.model(), tiny_images(20, (1, 8, 8)), n=4)).read_text(encoding="utf-8")
    found = run.evaluation()
    assert "Channels by position" in page and "KL of a grid of codes, 4x4x4" in page
    assert f"More than 0.01 nats: {found['kl_per_dimension']['above']['0.01']} of 64" in page
    assert "4 channels, 4x4" in page and "Layers of run: 64, 64, 64, 64, 64" in page
    assert "Loss against epoch: the mean over the training epoch." in page, (
        "trained without a curve of held-out examples"
    )
    assert "dashed" not in page
    assert "<code>4,4,4</code>" in page and tables.read(run).described == "latent 4x4x4"
    assert json.loads(said("doctor", run.path, "--json"))["run"]
    assert "ELBO" in said("explain", run.path)
    assert "bits/dim" in said("compare", run.path, residual.path)
