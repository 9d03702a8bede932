"""Which guidance a fitted prior is drawn with, chosen on training images: the test images are not looked at.

    python benchmarks/guidance.py RUN --prior flow_matching --out results/sharp/guidance.json

For each guidance n samples, the same number of each class and the same noise, against n training images: Frechet distance and
coverage in the features of the CIFAR-10 classifier, and the share that it recognises as the class asked for.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from diabolo import data, fitted
from diabolo.engine import environment
from diabolo.features import load
from diabolo.runs import Run, sha256, write_json
from diabolo.sample_metrics import (
    class_accuracy,
    frechet,
    moments,
    neighbourhoods,
    precision_recall_density_coverage,
)
from diabolo.sampling import draw, each_in_turn

GUIDANCES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--prior", default=None)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    run, features = Run(given.run), load("cifar10_classifier")
    prior = fitted.chosen(run, given.prior)
    dataset = data.load(run.config.data.name, run.config.data.params)
    index = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(0))[: given.n]
    real = features(dataset.train.values[index].float() / 255).double()
    reference, around = moments(real), neighbourhoods(real)
    classes = each_in_turn(given.n, len(dataset.spec.classes))
    rows = []
    for guidance in GUIDANCES:
        began = time.perf_counter()
        levels = draw(run, len(classes), 0, classes, guidance, prior=prior, device=torch.device("cpu"))
        seconds = time.perf_counter() - began
        images = levels.float() / 255
        found = features(images).double()
        rows.append({
            "guidance": guidance,
            "frechet": frechet(found, reference),
            **precision_recall_density_coverage(neighbourhoods(found), around),
            "class_accuracy": class_accuracy(features.logits(images), classes),
            "seconds": round(seconds, 1),
        })
        print(json.dumps(rows[-1]), flush=True)
    about = {
        "run_weights": sha256(run.path / "weights.safetensors"),
        "prior": prior,
        "n": len(classes),
        "reference": f"{given.n} training images",
        "features": f"cifar10_classifier {features.weights_hash}",
        **environment(torch.device("cpu")),
    }
    write_json(given.out, {"about": about, "rows": rows})


if __name__ == "__main__":
    main()
