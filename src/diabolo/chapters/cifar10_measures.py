"""What the CIFAR-10 chapter measures beside its runs: linear models in closed form, and pictures. Nothing here draws."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diabolo import linear
from diabolo.data import Dataset, Loader
from diabolo.language import say
from diabolo.pictures import pictures, random_examples
from diabolo.progress import Progress
from diabolo.report import Pictures
from diabolo.runs import Run

#: Images of the strip through every model.
STRIP = 8


@dataclass
class Measured:
    """`numbers` are plain JSON; `pictures` those of each run by name, and under "strip" the same images (8, C, H, W) with each
    run's reconstructions of them at z = mu; `seconds` by stage."""

    numbers: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Pictures | tuple[Tensor, dict[str, Tensor]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def measure(made: Mapping[str, Run], dataset: Dataset, progress: Progress) -> Measured:
    """Fit the linear models, and draw each run's pictures of the same test images and the same z."""
    found, began = Measured(), time.monotonic()
    progress.say("linear models in closed form")
    lines = linear.lines(dataset)
    found.numbers["linear"] = {
        "eigenvalues": lines.eigenvalues.tolist(),
        "grid": [line.to_dict() for line in lines.grid],
        "dequantized": [line.to_dict() for line in lines.dequantized],
    }
    found.seconds[str(say("linear models"))] = time.monotonic() - began
    began = time.monotonic()
    progress.say("pictures of each model")
    real, strip = random_examples(Loader(dataset, "test"), STRIP, seed=0), dict[str, Tensor]()
    parameters: dict[str, int] = {}
    for name, run in made.items():
        model = run.model()
        parameters[name] = sum(p.numel() for p in model.parameters())
        if run.data_hash == dataset.hash:  # permuted pixels make no picture
            found.pictures[name] = pictures(model, dataset)
            strip[name] = model.reconstruct(real).mean[0]
    found.pictures["strip"] = real, strip
    found.numbers["parameters"] = parameters
    found.seconds[str(say("pictures"))] = time.monotonic() - began
    return found
