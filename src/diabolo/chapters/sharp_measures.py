"""What the sharp chapter measures beside its runs: linear models, pictures, and the table of samples. Nothing here draws.

A row of the table of samples is kept with the hash of all that it was measured from, and measured again only if that has changed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from diabolo import features, fitted, linear, runs, sampling, sampling_table
from diabolo.config import read_json
from diabolo.data import Dataset, Loader
from diabolo.engine import pick_device
from diabolo.errors import DataError
from diabolo.language import say
from diabolo.pictures import random_examples
from diabolo.prior_config import OWN
from diabolo.progress import Progress
from diabolo.runs import Run
from diabolo.sampling_table import ImageSet

#: Images of the strip, and images a row and rows of a grid of samples: a row for each of ten classes.
STRIP, COLUMNS, ROWS = 12, 6, 10
LATENTS = (20, 256, 512)
#: The source that decides a row of the table of samples.
_SOURCE = ("models", "linear", "features", "sampling.py", "sampling_table.py", "sample_metrics.py", "memorisation.py")


@dataclass(frozen=True)
class Asked:
    """What is asked of the samples: how many in a row of the table, the guidance towards their class, the features, the seed."""

    n: int | None = None
    guidance: float = 3.0
    features: str = "cifar10_classifier"
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Measured:
    """`numbers` are plain JSON. `pictures`, values in [0, 1]: "real" (n, C, H, W), "strip" (the same images at z = mu by run),
    "grids" (samples by name of a set), "nearest" (two of eight by name of a set: samples, their nearest training images)."""

    numbers: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def measure(
    out: Path,
    made: Mapping[str, Run],
    dataset: Dataset,
    asked: Asked,
    priors: Sequence[str],
    device: str,
    progress: Progress,
) -> Measured:
    """Fit the linear models, draw pictures, and measure samples of the main run's priors and of the article's models.

    Raises:
        UsageError: for a number of samples that the data do not allow.
    """
    found, began = Measured(), time.monotonic()
    progress.say("linear models in closed form")
    lines = linear.lines(dataset, [q for q in LATENTS if q < dataset.spec.dimensions])
    found.numbers["linear"] = {
        "eigenvalues": lines.eigenvalues.tolist(),
        "grid": [line.to_dict() for line in lines.grid],
        "dequantized": [line.to_dict() for line in lines.dequantized],
    }
    found.seconds[str(say("linear models"))] = time.monotonic() - began
    found.numbers["parameters"] = {name: _parameters(run) for name, run in made.items()}
    found.numbers["priors"] = {name: _fit(made["sharp"], name) for name in priors}
    began = time.monotonic()
    progress.say("pictures of each model")
    plans = drawn(made, dataset, priors, asked)
    _pictures(found, made, dataset, plans, asked.seed, progress)
    found.seconds[str(say("pictures"))] = time.monotonic() - began
    table = _samples(out, made, dataset, plans, asked, device, progress)
    found.numbers["samples"] = table
    found.seconds[str(say("table of samples"))] = table["about"]["spent"]
    found.pictures["nearest"] = _kept(out)
    return found


def _parameters(run: Run) -> int:
    return sum(p.numel() for p in run.model().parameters())


def _fit(run: Run, name: str) -> dict[str, Any]:
    """What fitting a prior gave: its rates, how many numbers it holds, and its seconds, None of one in closed form."""
    path = run.path / "priors" / name
    prior = fitted.load_prior(path / "weights.safetensors")
    return {
        **read_json(path / "evaluation.json"),
        "seconds": sum(row["seconds"] for row in Run(path).timing()) if (path / "timing.jsonl").is_file() else None,
        "numbers": sum(t.numel() for t in prior.state_dict().values()),
    }


def weights_of(run: Run, prior: str) -> str:
    """SHA-256 of the weights that samples come from: those of a run, or of one of its priors."""
    path = run.path if prior == OWN else run.path / "priors" / prior
    return runs.sha256(path / "weights.safetensors")


# ------------------------------------------------------------------------------------------------ what is drawn
@dataclass(frozen=True)
class Drawn:
    """Samples under a name: of which run and prior, for classes or for none, and how far they are pushed towards them."""

    name: str
    run: Run
    prior: str
    classes: bool = False
    guidance: float = 1.0


def drawn(made: Mapping[str, Run], dataset: Dataset, priors: Sequence[str], asked: Asked) -> list[Drawn]:
    """Samples of the main run with its own prior and with each that was fitted, and of the article's models with theirs."""
    main, known = made["sharp"], bool(dataset.spec.classes)
    plans = [Drawn(name, run, OWN) for name, run in made.items() if name.startswith("c")]
    plans.append(Drawn("own", main, OWN))
    if "mixture" in priors:
        plans.append(Drawn("mixture", main, "mixture", known))
    if "flow_matching" in priors:
        plans.append(Drawn("flow", main, "flow_matching"))
        plans += [Drawn("flow-class", main, "flow_matching", True, asked.guidance)] if known else []
    return plans


def _levels(plan: Drawn, n: int, classes: Tensor | None, seed: int, device: torch.device, progress: Progress) -> Tensor:
    progress.say(f"drawing {n:,} samples: {plan.name}")
    asked = classes if plan.classes else None
    return sampling.draw(plan.run, n, seed, asked, plan.guidance, prior=plan.prior, device=device, progress=progress)


def _pictures(
    found: Measured, made: Mapping[str, Run], dataset: Dataset, plans: Sequence[Drawn], seed: int, progress: Progress
) -> None:
    """The same test images through every model at z = mu, and a grid of each set of samples, a class a row."""
    real = random_examples(Loader(dataset, "test"), STRIP, seed=0)
    rows = torch.arange(max(1, min(ROWS, len(dataset.spec.classes)))).repeat_interleave(COLUMNS)
    found.pictures["real"] = real
    found.pictures["strip"] = {name: run.model().reconstruct(real).mean[0] for name, run in made.items()}
    found.pictures["grids"] = {
        plan.name: _levels(plan, COLUMNS * ROWS, _whole(rows), seed, torch.device("cpu"), progress).float() / 255
        for plan in plans
    }


def _whole(rows: Tensor) -> Tensor:
    """As many class numbers as a grid has images; with fewer classes than rows they begin again."""
    return rows.repeat(-(-COLUMNS * ROWS // len(rows)))[: COLUMNS * ROWS]


# ------------------------------------------------------------------------------------------------ the table of samples
@dataclass(frozen=True)
class _Wanted:
    """A row: its name, the hash of all that decides it, and how its images are made."""

    name: str
    of: str
    make: Callable[[], ImageSet]


def _samples(
    out: Path,
    made: Mapping[str, Run],
    dataset: Dataset,
    plans: Sequence[Drawn],
    asked: Asked,
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    """The table, with the rows that stand; `spent` are the seconds that its rows took, then or now."""
    began, where = time.monotonic(), pick_device(device)
    fixed, n = features.load(asked.features), sampling_table.usual_n(dataset, asked.n)
    common = [dataset.hash, n, asked.seed, asked.features, fixed.weights_hash, runs.source_hash(*_SOURCE)]
    wanted = _wanted(made["sharp"], dataset, plans, n, asked.seed, common, where, progress)
    old = _table(out)
    standing = {row["set"]: row for row in old["rows"] if any(row["of"] == w.of for w in wanted)}
    missing = [w for w in wanted if w.name not in standing]
    if not missing:
        return {**old, "rows": [standing[w.name] for w in wanted]}
    sets = [replace(w.make(), name=w.name) for w in missing]
    table = sampling_table.measure(sets, dataset, fixed, asked.features, device=where, progress=progress)
    for w, row in zip(missing, table["rows"]):
        standing[w.name] = {**row, "of": w.of}
    spent = time.monotonic() - began + (old["about"]["spent"] if len(missing) < len(wanted) else 0.0)
    found = {"about": {**table["about"], "spent": spent}, "rows": [standing[w.name] for w in wanted]}
    _keep(out, sets, dataset, standing)
    runs.write_json(out / "samples.json", found)
    return found


def _wanted(
    main: Run,
    dataset: Dataset,
    plans: Sequence[Drawn],
    n: int,
    seed: int,
    common: Sequence[Any],
    device: torch.device,
    progress: Progress,
) -> list[_Wanted]:
    known = len(dataset.spec.classes)
    classes = sampling.each_in_turn(n, known) if known else None
    again = partial(sampling_table.reconstructions, main, dataset, n, seed, device=device, progress=progress)

    def of(*words: Any) -> str:
        return hashlib.sha256(json.dumps([*common, *words]).encode()).hexdigest()

    def samples(plan: Drawn) -> ImageSet:
        levels = _levels(plan, n, classes, seed, device, progress)
        return ImageSet("", "samples", levels, classes if plan.classes else None)

    rows = [
        _Wanted("floor", of("floor"), lambda: sampling_table.floor(dataset, n, seed)),
        _Wanted("reconstructions", of("z = mu", weights_of(main, OWN)), again),
        _Wanted("ppca", of("ppca"), lambda: sampling_table.ppca(dataset, n, seed)),
    ]
    if known and dataset.train.labels is not None:
        rows.append(_Wanted("gaussians", of("gaussians"), lambda: sampling_table.gaussians(dataset, n, seed)))
    for plan in plans:
        weights = [weights_of(plan.run, OWN), weights_of(plan.run, plan.prior)]
        rows.append(_Wanted(plan.name, of(plan.classes, plan.guidance, *weights), partial(samples, plan)))
    return rows


def _table(out: Path) -> dict[str, Any]:
    """The table that is there, or an empty one."""
    try:
        return read_json(out / "samples.json")
    except DataError:
        return {"about": {"spent": 0.0}, "rows": []}


# ------------------------------------------------------------------------------------------------ the nearest samples
def _keep(out: Path, sets: Sequence[ImageSet], dataset: Dataset, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Of each set of samples, those nearest to training images, with these, mirrored where that is nearer: levels
    (2, 8, C, H, W)."""
    kept = load_file(out / "nearest.safetensors") if (out / "nearest.safetensors").is_file() else {}
    for s in sets:
        near = rows[s.name]["memorised"]["nearest"]
        known = dataset.train.values[near["training images"]].cpu()
        turned = torch.tensor(near["mirrored"])[:, None, None, None]
        kept[s.name] = torch.stack([s.levels[near["samples"]], torch.where(turned, known.flip(-1), known)])
    runs.write_tensors(out / "nearest.safetensors", kept)


def _kept(out: Path) -> dict[str, Tensor]:
    return {name: levels.float() / 255 for name, levels in load_file(out / "nearest.safetensors").items()}
