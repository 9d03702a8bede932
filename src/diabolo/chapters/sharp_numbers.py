"""What the page of the sharp chapter says in numbers: gathered from the evaluations of its runs, plain JSON throughout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diabolo.chapters.cifar10_numbers import dimensions, directions, gain, line
from diabolo.images_metrics import psnr
from diabolo.tables import Reading

Entry = dict[str, Any]

#: What the chapter's tables need of every evaluation, and what they show where it was measured.
REQUIRED = ("elbo", "kl", "mse_mean", "mse_sample", "active_units", "psnr", "bits_per_dim", "bits_per_dim_calibrated")
OPTIONAL = ("ssim",)
#: The run that the ablation is measured against, and the one that another is, since it lacks that part, too.
BASE = "short"
BASES = {"short-vector": "short-no-shortcut"}
#: The line that the main run's distance is taken from: pPCA with as many latents.
RIVAL = 512


def gathered(readings: Mapping[str, Reading], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that claims, words and tables say: a row a run, what each change of the ablation costs, and `numbers`, as
    `sharp_measures` has them.

    Raises:
        DataError: if an evaluation lacks a metric; see `tables.read`.
    """
    runs = {name: _row(reading, numbers["parameters"][name]) for name, reading in readings.items()}
    return {
        **numbers,
        "runs": runs,
        "dimensions": next(iter(runs.values()))["dimensions"],
        "gains": {
            name: gain(readings[base].per_image["mse_mean"], readings[name].per_image["mse_mean"])
            for name in readings
            if name.startswith(f"{BASE}-") and (base := base_of(name)) in readings
        },
    }


def base_of(name: str) -> str:
    """The run of the ablation that another differs from by one change."""
    return BASES.get(name, BASE)


def _row(reading: Reading, parameters: int) -> Entry:
    e, about = reading.evaluation, reading.about
    return {
        **{name: dict(e[name]) for name in (*REQUIRED, *OPTIONAL) if name in e},
        "directions": directions(reading.per_image["mean"]),
        "psnr_drawn": psnr(e["mse_sample"]["value"]),
        "dimensions": dimensions(reading),
        "sigma": about.get("sigma"),
        "family": about.get("family", about["likelihood"]),
        "likelihood": about["likelihood"],
        "split": about["split"],
        "parameters": parameters,
        "images": images_seen(reading),
        "seconds": sum(float(row["seconds"]) for row in reading.timing if row["stage"] == "train"),
        "threads": reading.env.get("threads"),
        "epochs": reading.config["train"]["epochs"],
    }


def images_seen(reading: Reading) -> int:
    """Training images that the run took a step on, counted as often as they were seen."""
    return sum(int(row["examples"]) for row in reading.metrics if row["split"] == "train")


def rival(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The pPCA with as many latents as the main run, in the convention that models are ranked in."""
    return line(found["linear"]["dequantized"], RIVAL)


def full_covariance(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The Gaussian with the full covariance, in the convention that models are ranked in."""
    return line(found["linear"]["dequantized"], None)


def samples_of(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The rows of the table of samples by name."""
    return {row["set"]: row for row in found["samples"]["rows"]}


def above(found: Mapping[str, Any], variance: float) -> int:
    """How many eigenvalues of the covariance of the training images exceed a variance, both in units of x = k/255."""
    return sum(value > variance for value in found["linear"]["eigenvalues"])
