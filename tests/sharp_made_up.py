"""Made-up numbers and run folders of the sharp chapter: consistent with one another, quick to write, nothing trained."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from cifar10_made_up import RUNS, SHAPE, linear_numbers, make_line, make_run
from diabolo.chapters.sharp_words import NAMES, SETS

#: As in cifar10_made_up: name -> network, width, latents, active units, sigma (None: 1/2), SSE, KL.
OWN = {
    "sharp": ("resnet", 128, 512, 505, 0.03, 2.6, 990.0),
    "sharp-60": ("resnet", 128, 512, 508, 0.028, 2.3, 1010.0),
    "short": ("resnet", 128, 512, 500, 0.033, 3.2, 950.0),
    "short-fixed": ("resnet", 128, 512, 30, None, 60.0, 26.0),
    "short-vector": ("resnet", 128, 512, 400, 0.05, 7.0, 700.0),
    "short-no-blocks": ("resnet", 128, 512, 490, 0.04, 4.6, 900.0),
    "short-no-shortcut": ("resnet", 128, 512, 495, 0.036, 3.8, 930.0),
}
ALL = {**{name: RUNS[name] for name in ("c1", "c4", "c5-leaky")}, **OWN}
#: Name of a set -> Frechet distance, coverage, class accuracy (None: no class was asked), memorised.
SAMPLES = {
    "floor": (0.5, 0.95, 0.95, 0.013),
    "reconstructions": (3.0, 0.9, 0.9, 0.012),
    "ppca": (60.0, 0.05, None, 0.01),
    "gaussians": (55.0, 0.08, 0.2, 0.01),
    "c1": (90.0, 0.01, None, 0.02),
    "c4": (80.0, 0.02, None, 0.02),
    "c5-leaky": (81.0, 0.02, None, 0.02),
    "own": (70.0, 0.05, None, 0.01),
    "mixture": (40.0, 0.2, 0.3, 0.01),
    "flow": (18.0, 0.5, None, 0.02),
    "flow-class": (15.0, 0.6, 0.7, 0.02),
}


def make_runs(folder):
    made = {name: make_run(folder, name, row=row) for name, row in ALL.items()}
    for run in made.values():
        with (run.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"step": 9, "epoch": 9, "split": "train", "examples": 50000, "loss": 1.0}\n')
    return made


def number(value, unit="share", se=0.004, n=10_000):
    return {"value": value, "se": se, "n": n, "unit": unit}


def make_row(name, frechet, coverage, accuracy, memorised):
    row = {
        "set": name,
        "kind": "samples",
        "n": 10_000,
        "frechet": number(frechet, se=0.2),
        "kernel": number(frechet / 9),
    }
    row |= {key: number(coverage) for key in ("precision", "recall", "density", "coverage")}
    return {**row, **({} if accuracy is None else {"class_accuracy": number(accuracy)}), "memorised": number(memorised)}


def make_table(rows=None):
    features = {"name": "cifar10_classifier", "weights_hash": "f" * 64, "dimensions": 224}
    about = {"data": "cifar10", "n": 10_000, "k": 5, "quantile": 0.01, "features": features, "spent": 900.0}
    about |= {"reference": {"split": "test", "n": 10_000}, "train": {"split": "train", "n": 50_000}}
    return {"about": about, "rows": [make_row(name, *row) for name, row in (rows or SAMPLES).items()]}


def make_numbers(plan="normal", rows=None):
    linear = linear_numbers()
    with_rival = [*linear["grid"], {**make_line(512, 0.0018, True), "psnr_projection": 29.92}]
    linear |= {"grid": with_rival, "dequantized": with_rival}
    rates = {
        key: number(value, "nats/example", 1.0) for key, value in (("own_rate", 990.0), ("rate", 900.0), ("gain", 90.0))
    }
    about = {"machine": {"processor": "cifar", "cores": 2}, "seconds": 549.1}
    about["priors"] = {"flow_matching": {"seconds": 2484.2}}
    return {
        **({"pretrained": about} if plan == "pretrained" else {}),
        **{"linear": linear, "samples": make_table(rows), "plan": plan, "data": "cifar10"},
        **{"guidance": 2.0, "seed": 0, "n": None, "features": "cifar10_classifier"},
        "parameters": {name: 1000 + i for i, name in enumerate(ALL)},
        "priors": {
            "mixture": {**rates, "rate_given_class": number(880.0, se=1.0), "seconds": None, "numbers": 5_000_000},
            "flow_matching": {"own_rate": rates["own_rate"], "seconds": 300.0, "numbers": 7_000_000},
        },
    }


def make_pictures(names):
    g = torch.Generator().manual_seed(0)
    real = torch.rand(12, *SHAPE, generator=g)
    sets = [name for name in SETS if name in SAMPLES and name not in ("floor", "reconstructions", "ppca", "gaussians")]
    return {
        "real": real,
        "strip": {name: 0.5 * real for name in NAMES if name in names},
        "grids": {name: torch.rand(60, *SHAPE, generator=g) for name in sets},
        "nearest": {name: torch.rand(2, 8, *SHAPE, generator=g) for name in sets},
    }


def make_measured(names=tuple(ALL), plan="normal", rows=None):
    return SimpleNamespace(numbers=make_numbers(plan, rows), pictures=make_pictures(names))
