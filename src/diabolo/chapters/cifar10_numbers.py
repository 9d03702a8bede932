"""What the page of the CIFAR-10 chapter says in numbers: gathered from the evaluations of its runs, plain JSON throughout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diabolo.chapters.cifar10_article import CONTROL, NAMES, density_bits
from diabolo.images_metrics import psnr
from diabolo.metrics import ACTIVE_VARIANCE, mean_and_se
from diabolo.report import Pictures
from diabolo.tables import Reading, paired

Entry = dict[str, Any]

#: What the chapter's table needs of every evaluation, and what it shows where it was measured.
REQUIRED = (
    "elbo",
    "kl",
    "mse_mean",
    "mse_sample",
    "active_units",
    "psnr",
    "bits_per_dim",
    "bits_per_dim_calibrated",
)
OPTIONAL = ("log_p", "ssim")
#: Pairs of runs that differ in one thing: what it is measured on, and the two runs.
PAIRS = {
    "c2": ("c2", "c2-optimal"),
    "c4": ("c4", "c4-optimal"),
    "c5": ("c5-leaky", "c5-leaky-optimal"),
    "activation": ("c4", "c5-leaky"),
    "activation-optimal": ("c4-optimal", "c5-leaky-optimal"),
}
#: The line that the convolutional network's distance is taken from: pPCA with as many latents.
RIVAL = 256


def gathered(
    readings: Mapping[str, Reading], linear: Mapping[str, Any], pictures: Mapping[str, Any], epochs: int
) -> dict[str, Any]:
    """Everything that claims, notes and tables say: a row a run, paired differences, the lines in closed form.

    Raises:
        DataError: if an evaluation lacks a metric; see `tables.read`.
    """
    runs = {name: _row(reading) for name, reading in readings.items()}
    found = {
        "dimensions": next(iter(runs.values()))["dimensions"],
        "epochs": epochs,
        "linear": linear,
        "runs": runs,
        "paired": {
            key: _pair(readings[one], readings[other])
            for key, (one, other) in PAIRS.items()
            if one in readings and other in readings
        },
        "brightness": _brightness(pictures),
    }
    return found | {"distance": _distance(found)}


def dimensions(reading: Reading) -> int:
    """Values of an image."""
    return math.prod(reading.env["data"]["spec"]["shape"])


def _row(reading: Reading) -> Entry:
    """The metrics of a run that the table shows, and what the article calls its ELBO: -(SSE + KL), z drawn, nats per
    image."""
    e, size = reading.evaluation, dimensions(reading)
    sse = size * reading.per_image["mse_sample"].double()
    return {
        **{name: dict(e[name]) for name in (*REQUIRED, *OPTIONAL) if name in e},
        "sse": _entry(sse),
        "directions": directions(reading.per_image["mean"]),
        "article": _entry(-(sse + reading.per_image["kl"].double())),
        "psnr_drawn": psnr(e["mse_sample"]["value"]),
        "dimensions": size,
        "sigma": reading.about.get("sigma"),
        "family": reading.about.get("family", reading.about["likelihood"]),
        "likelihood": reading.about["likelihood"],
        "epochs": reading.config["train"]["epochs"],
    }


def directions(mean: Tensor) -> Entry:
    """How many principal axes of the posterior means (N, d) have a variance above that which makes a unit active.

    Active units are counted along the axes of the code. A network that turns its code spreads one direction over many units, so
    that nearly all of them pass; along the principal axes each direction counts once.
    """
    variances = torch.linalg.eigvalsh(torch.atleast_2d(torch.cov(mean.double().T)))
    return {"value": int((variances > ACTIVE_VARIANCE).sum()), "se": None, "of": mean.shape[1], "n": mean.shape[0]}


def _entry(values: Tensor) -> Entry:
    value, se = mean_and_se(values.double())
    return {"value": value, "se": se, "n": values.numel()}


def _pair(one: Reading, other: Reading) -> Entry:
    """What `other` has more than `one`, on the same images."""
    a, b = one.per_image, other.per_image
    elbo, se, n = paired(a["elbo"], b["elbo"])
    return {"elbo": {"value": elbo, "se": se, "n": n}, "psnr": gain(a["mse_mean"], b["mse_mean"])}


def gain(before: Tensor, after: Tensor) -> Entry:
    r"""PSNR after minus before, dB, from mean squared errors (N,) of the same images, with its standard error.

    .. math:: g = \tfrac{10}{\ln 10} \left( \ln \bar a - \ln \bar b \right), \qquad
              SE^2 = \tfrac1N \mathrm{Var} \left[ \tfrac{10}{\ln 10} (a_i / \bar a - b_i / \bar b) \right]

    by the delta method: an image enters both means.
    """
    a, b = before.double(), after.double()
    per_neper = 10 / math.log(10)
    _, se = mean_and_se(per_neper * (a / a.mean() - b / b.mean()))
    return {"value": per_neper * math.log(a.mean() / b.mean()), "se": se, "n": a.numel()}


def _brightness(pictures: Mapping[str, Any]) -> dict[str, Entry]:
    """Mean pixel value of a reconstruction minus that of its image, over the images that are shown."""
    shown = {name: pictures[name] for name in ("c5-leaky", CONTROL) if isinstance(pictures.get(name), Pictures)}
    return {
        name: _entry((p.reconstructed - p.real).double().flatten(1).mean(1))
        for name, p in shown.items()
        if len(p.real) > 1
    }


# ------------------------------------------------------------------------------------------------ the lines in closed form
def line(lines: Sequence[Mapping[str, Any]], latent: int | None, *, fixed: bool = False) -> Mapping[str, Any] | None:
    """The line of so many latents with the article's sigma^2, or with that of maximum likelihood; None where there is
    none."""
    return next((row for row in lines if row["latent"] == latent and row["fitted"] != fixed), None)


def _distance(found: Mapping[str, Any]) -> Entry | None:
    """C4-optimal minus pPCA with as many latents: bits per dimension in both conventions, and PSNR.

    The errors of the two are added as if they were independent. On the same images they are not, so this is the larger one.
    """
    run, linear = found["runs"].get("c4-optimal"), found["linear"]
    ranked, grid = line(linear["dequantized"], RIVAL), line(linear["grid"], RIVAL)
    if run is None or ranked is None or grid is None or grid["psnr_projection"] is None:
        return None
    bits, elbo, size = run["bits_per_dim"], run["elbo"], run["dimensions"]
    on_grid = density_bits(-elbo["value"], size)
    return {
        "latent": RIVAL,
        "grid": {
            "value": on_grid - grid["bits_per_dim"],
            "se": math.hypot(density_bits(elbo["se"] - elbo["value"], size) - on_grid, grid["bits_se"]),
            "n": elbo["n"],
        },
        "bits_per_dim": {
            "value": bits["value"] - ranked["bits_per_dim"],
            "se": math.hypot(bits["se"], ranked["bits_se"]),
            "n": bits["n"],
        },
        "psnr": {
            "value": run["psnr"]["value"] - grid["psnr_projection"],
            "se": run["psnr"]["se"],
            "n": run["psnr"]["n"],
        },
    }


def best(found: Mapping[str, Any]) -> str:
    """The run with the fewest bits per dimension after calibration, of those on pixels in their own order."""
    runs: Mapping[str, Any] = found["runs"]
    bits = {
        name: float(row["bits_per_dim_calibrated"]["value"])
        for name, row in runs.items()
        if not name.endswith("-permuted") and (name != CONTROL or len(runs) == 1)
    }
    return min(bits, key=lambda name: bits[name])


def in_order(names: Sequence[str]) -> list[str]:
    """Names of runs in the order of the story."""
    return [name for name in NAMES if name in names]
