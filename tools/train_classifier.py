"""Train the classifier of CIFAR-10 whose last hidden layer samples are measured in, and keep how good it is.

    python tools/train_classifier.py [--epochs 9] [--seed 0] [--rate 0.4] [--out runs/classifier] [--validation] [--keep]

Writes cifar10_classifier.safetensors (half precision) and classifier.json into --out. --keep: into src/diabolo/weights and
results/sharp; the hash that it says then belongs into src/diabolo/features/cifar10_classifier.py, which refuses others. The
file also says how long training took, so its hash is another each time. The test images are read once, at the end, by the
code that ships. --validation: trains on the first 45,000 images, says the accuracy on the last 5,000, and writes nothing; so
the rate was chosen. The number of epochs is what about ten minutes of one core allow.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from diabolo import data
from diabolo.data.spec import Split
from diabolo.engine import environment
from diabolo.features.cifar10_classifier import WEIGHTS, Cifar10Classifier, Classifier
from diabolo.runs import sha256, write_json, write_tensors
from diabolo.seeds import fold

RESULT = Path(__file__).parent.parent / "results" / "sharp" / "classifier.json"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Recipe:
    """How the classifier learns: SGD with Nesterov's momentum; the rate rises over `rise` of the steps and falls to zero, both
    in a straight line (one cycle); labels are smoothed; images are flipped and moved by up to `shift` pixels with mirrored edges.
    """

    epochs: float = 9.0
    rate: float = 0.4
    batch: int = 512
    momentum: float = 0.9
    decay: float = 5e-4
    smoothing: float = 0.1
    rise: float = 0.2
    shift: int = 2
    seed: int = 0


def moved(x: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Images (B, 3, H, W) of levels, each flipped with probability 1/2 and moved by up to `shift` pixels each way."""
    count, side = len(x), x.shape[-1]
    wide = functional.pad(x.float().div_(255), (shift,) * 4, mode="reflect")
    windows = wide.unfold(2, side, 1).unfold(3, side, 1)
    down, right = (torch.randint(2 * shift + 1, (count,), generator=generator) for _ in range(2))
    x = windows[torch.arange(count), :, down, right]
    flip = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    return torch.where(flip, x.flip(3), x)


def train(images: Tensor, labels: Tensor, recipe: Recipe) -> tuple[Classifier, int]:
    """Fit the classifier to levels (N, 3, 32, 32) and labels (N,); also how many images it saw, repeated ones counted again."""
    torch.manual_seed(fold(recipe.seed, "weights"))
    network = Classifier().to(memory_format=torch.channels_last)
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": recipe.decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, lr=recipe.rate, momentum=recipe.momentum, nesterov=True)
    per_epoch = len(images) // recipe.batch
    steps = round(recipe.epochs * per_epoch)
    start, total = time.perf_counter(), 0.0
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = torch.randperm(len(images), generator=seeded(recipe.seed, "order", epoch))
        chosen = order[place * recipe.batch : (place + 1) * recipe.batch]
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * share(step / steps, recipe.rise)
        x = moved(images[chosen], recipe.shift, seeded(recipe.seed, "moves", step))
        total += learn(network, optimiser, x, labels[chosen], recipe.smoothing)
        if place == per_epoch - 1:
            print(f"epoch {epoch + 1}: loss {total / per_epoch:.4f}, {time.perf_counter() - start:.0f} s", flush=True)
            total = 0.0
    return network, steps * recipe.batch


def learn(network: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor, smoothing: float) -> float:
    """Take one step; products are bfloat16, weights and their sums float32."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(x)
    loss = functional.cross_entropy(logits.float(), y, label_smoothing=smoothing)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()


def share(done: float, rise: float) -> float:
    """The rate of one cycle as a share of its peak, when `done` of the steps are taken."""
    return done / rise if done < rise else (1 - done) / (1 - rise)


def seeded(*parts: int | str) -> torch.Generator:
    """A generator for one purpose."""
    return torch.Generator().manual_seed(fold(*parts))


def accuracy(features: Cifar10Classifier, split: Split) -> dict[str, Any]:
    """The share of images whose class is found, with its binomial standard error, and that of each class."""
    labels = split.labels.long()
    right = (features.logits(split.values.float() / 255).argmax(1) == labels).double()
    value, n = right.mean().item(), len(right)
    classes = {name: right[labels == i].mean().item() for i, name in enumerate(features.classes)}
    return {"accuracy": value, "se": math.sqrt(value * (1 - value) / n), "n": n, "classes": classes}


def parameters(network: nn.Module) -> int:
    """How many numbers were learned by gradient."""
    return sum(p.numel() for p in network.parameters())


def halved(network: nn.Module) -> dict[str, Tensor]:
    """The state as it is kept: numbers in half precision, counts as they are."""
    return {name: t.half() if t.is_floating_point() else t for name, t in network.state_dict().items()}


def keep(network: nn.Module, path: Path, about: dict[str, Any]) -> Cifar10Classifier:
    """Write the weights with what is known of them, and load them as the package does."""
    write_tensors(path, halved(network), {"diabolo": json.dumps(about)})
    return type("Trained", (Cifar10Classifier,), {"weights_path": path, "weights_hash": sha256(path)})()


def main() -> int:
    """Train, write, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in (("epochs", float), ("rate", float), ("seed", int)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(Recipe, name))
    parser.add_argument("--out", type=Path, default=Path("runs/classifier"))
    for name in ("validation", "keep"):
        parser.add_argument(f"--{name}", action="store_true")
    asked = parser.parse_args()
    weights, result = (WEIGHTS, RESULT) if asked.keep else (asked.out / WEIGHTS.name, asked.out / RESULT.name)
    recipe = Recipe(asked.epochs, asked.rate, seed=asked.seed)
    dataset = data.load("cifar10", {"validation": 5000 if asked.validation else 0})
    start = time.perf_counter()
    network, seen = train(dataset.train.values, dataset.train.labels.long(), recipe)
    about = {
        "command": shlex.join(["python", "tools/train_classifier.py", *sys.argv[1:]]),
        "recipe": asdict(recipe),
        "images_seen": seen,
        "seconds": round(time.perf_counter() - start, 1),
        "machine": {key: environment(CPU)[key] for key in ("processor", "cores", "threads", "torch", "capability")},
    }
    if asked.validation:
        with tempfile.TemporaryDirectory() as folder:
            features = keep(network, Path(folder) / "trained.safetensors", about)
        print(json.dumps(about | accuracy(features, dataset.validation)))
        return 0
    weights.parent.mkdir(parents=True, exist_ok=True)
    found = accuracy(keep(network, weights, about), dataset.test)
    trained = keep(network, weights, about | {"test": found})
    write_json(
        result, about | {"parameters": parameters(network), "weights_sha256": trained.weights_hash, "test": found}
    )
    print(f"accuracy {found['accuracy']:.4f} +- {found['se']:.4f}; weights_hash = {trained.weights_hash!r}")
    print(f"written: {weights}, {result}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
