"""Pack a finished run, and priors that were fitted to it, as a model that comes with the package: `pretrained:NAME`.

    python tools/pack_pretrained.py RUN [--name NAME] [--prior NAME ...] [--guidance 2] [--n 10000] [--overwrite]

Writes src/diabolo/pretrained/NAME: weights in half precision, configuration, metrics, and about.json with the commands, the
machine, images seen, seconds, the hash of each file, and what the packed weights themselves give: they are evaluated on the test
split here, and samples of each prior (of each class in turn where it knows classes, with that guidance where it has no density)
are measured by `diabolo measure` where the data are CIFAR-10. The last --prior is the one that `sample` draws from. All models
of the package together stay below `diabolo.packaged.LARGEST` bytes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diabolo import data, fitted, packaged, runs
from diabolo.config import flatten, read_json, read_preset, resolve
from diabolo.data import Dataset
from diabolo.errors import UsageError
from diabolo.evaluation import Settings, evaluate
from diabolo.listings import plain
from diabolo.prior_config import prior_from_dict, resolve_prior
from diabolo.training import training_source_hash
from diabolo.verbs.measure import measure

#: What is packed as it is, beside the weights; a prior has no loss card.
FILES = ("config.json", "env.json", "status.json", "loss_card.json", "metrics.jsonl", "timing.jsonl")
#: What is said of the model and of samples: the words of a listing = the metric.
OF_MODEL = {"PSNR at z = mu": "psnr", "code length": "bits_per_dim", "ELBO": "elbo"}
OF_SAMPLES = {
    "asked class seen in": "class_accuracy",
    "coverage": "coverage",
    "Frechet distance": "frechet",
    "memorised": "memorised",
}
#: log p(x) by importance sampling takes hours at this size, and no number of about.json needs it.
SETTINGS = Settings(k=0)
MACHINE = ("processor", "cores", "threads", "memory", "capability", "device_name", "platform", "python", "torch")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be packed and measured: `n` samples with `guidance` in `features` (None: those of `diabolo measure`)."""

    run: Path
    name: str = ""
    priors: tuple[str, ...] = ()
    guidance: float = 1.0
    n: int | None = None
    features: str | None = None
    overwrite: bool = False


# ------------------------------------------------------------------------------------------------ packing
def pack(asked: Asked, settings: Settings = SETTINGS, command: str = "") -> Path:
    """Pack and measure; returns the new folder of the package, which is written whole or not at all.

    Raises:
        UsageError: for a run that is not finished, a name that is taken, weights that half precision cannot hold, or too
            many bytes.
        DataError: if run or data are missing.
    """
    run = runs.Run(asked.run)
    target = packaged.ROOT / (asked.name or run.config.preset or run.name)
    if target.exists() and not asked.overwrite:
        raise UsageError(f"{target} exists already", remedy="Choose another --name, or add --overwrite.")
    _check_finished(run.path, run.config.train.smoke)
    dataset = data.load(run.config.data.name, run.config.data.params)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / target.name
        _store(run.path, made)
        for name in asked.priors:
            prior = run.path / "priors" / name
            _check_finished(prior, prior_from_dict(read_json(prior / "config.json")).train.smoke)
            _store(run.path / "priors" / name, made / "priors" / name)
            _belongs(run, made, name)
        about = _about(run, made, asked, dataset, settings, command)
        runs.write_json(made / "about.json", about | {"files": pinned(made)})
        _check_size(made, target)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(made, target)
    return target


def _check_finished(path: Path, smoke: bool) -> None:
    state = read_json(path / "status.json").get("state")
    if state != "finished" or smoke:
        raise UsageError(f"{path} is not packed", f"It is {'a smoke run' if smoke else state}, and must be finished.")


def _store(source: Path, target: Path) -> None:
    """Copy what is read later, and the weights in half precision."""
    target.mkdir(parents=True)
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    tensors, about = runs.read_weights(source / "weights.safetensors")
    half = {name: t.half() if t.dtype == torch.float32 else t for name, t in tensors.items()}
    lost = [name for name, t in half.items() if not torch.equal(t.isfinite(), tensors[name].isfinite())]
    if lost:
        raise UsageError(f"half precision cannot hold {', '.join(lost[:5])}", "A value is beyond 65,504.")
    runs.write_described(target / "weights.safetensors", half, about | {"storage": runs.HALF})


def _belongs(run: runs.Run, made: Path, name: str) -> None:
    """Check that a prior was fitted to the codes of the run's weights, and have it say so of the packed ones."""
    fitted.model_of(run, name)
    path = made / "priors" / name / "env.json"
    env = read_json(path)
    env["run"] = env["run"] | {"weights": runs.sha256(made / "weights.safetensors"), "fitted_to": env["run"]["weights"]}
    runs.write_json(path, env)


def pinned(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of each file but about.json."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "about.json")
    return {p.relative_to(folder).as_posix(): {"sha256": runs.sha256(p), "size": p.stat().st_size} for p in files}


def _check_size(made: Path, target: Path) -> None:
    others = (p for p in packaged.ROOT.rglob("*") if p.is_file() and not p.is_relative_to(target))
    size, rest = (
        sum(p.stat().st_size for p in files) for files in ((p for p in made.rglob("*") if p.is_file()), others)
    )
    if size + rest > packaged.LARGEST:
        why = f"It has {size:,} bytes, the others {rest:,}; {packaged.LARGEST:,} are allowed in all."
        raise UsageError(f"{target.name} is too large for the package", why, "Leave a --prior out.")


# ------------------------------------------------------------------------------------------------ what is said
def _about(
    run: runs.Run, made: Path, asked: Asked, dataset: Dataset, settings: Settings, command: str
) -> dict[str, Any]:
    packed = runs.Run(made)
    found = evaluate(packed, settings, data=dataset)
    (made / "per_image.safetensors").unlink()
    preset = run.config.preset
    priors = {name: _prior(packed, name, asked, dataset, preset) for name in asked.priors}
    return {
        "schema": runs.SCHEMA,
        "summary": read_preset(preset)["about"]["summary"] if preset else run.config.data.name,
        "commands": [
            command_of_run(run),
            *(prior["command"] for prior in priors.values()),
            *([command] if command else []),
        ],
        **_facts(made, run.config.seed),
        "commit": commit(),
        "source_hash": run.env["source_hash"],
        "source_is_of_commit": run.env["source_hash"] == training_source_hash(),
        "storage": runs.HALF,
        "weights_before": runs.sha256(run.path / "weights.safetensors"),
        "result": {what: entry(found[metric]) for what, metric in OF_MODEL.items() if metric in found},
        "priors": priors,
    }


def _facts(path: Path, seed: int) -> dict[str, Any]:
    """How a training of a run or of a prior went, from its own files; a fit in closed form has neither steps nor a clock."""
    env, facts = read_json(path / "env.json"), {}
    if (path / "metrics.jsonl").is_file():
        timing = [row["seconds"] for row in _lines(path / "timing.jsonl") if row["stage"] == "train"]
        seen = [row["examples"] for row in _lines(path / "metrics.jsonl") if row["split"] == "train"]
        facts = {"seconds": round(sum(timing), 1), "examples_seen": sum(seen)}
    return {"seed": seed, **facts, "machine": {key: env[key] for key in MACHINE}}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _prior(packed: runs.Run, name: str, asked: Asked, dataset: Dataset, preset: str) -> dict[str, Any]:
    path = packed.path / "priors" / name
    config = prior_from_dict(read_json(path / "config.json"))
    rates = fitted.measure(packed, name, dataset)
    result = {"rate": entry({**rates["rate"], "unit": "nats/example"})} if "rate" in rates else {}
    told: dict[str, Any] = {}
    prior, words = fitted.load_prior(path / "weights.safetensors"), [f"prior={name}"]
    if getattr(prior, "classes", 0):
        words += ["class=each", *([] if prior.density == "exact" else [f"guidance={asked.guidance:g}"])]
    if asked.features or (dataset.spec.name, dataset.spec.shape) == ("cifar10", (3, 32, 32)):
        found = measure(packed.path, *words, features=asked.features, n=asked.n, as_json=True).data
        (packed.path / "samples.json").unlink()
        row = found["rows"][-1]
        result |= {what: entry(row[metric]) for what, metric in OF_SAMPLES.items() if metric in row}
        told = {"drawn": found["about"]["drawn"], "features": found["about"]["features"]["name"]}
    command = command_of_prior(config.to_dict(), preset, name)
    return {"command": command, **_facts(path, config.seed), **told, "result": result}


def entry(found: Mapping[str, Any]) -> dict[str, Any]:
    """A number with its standard error, unit and count."""
    return {key: found[key] for key in ("value", "se", "n", "unit") if key in found}


# ------------------------------------------------------------------------------------------------ commands
def command_of_run(run: runs.Run) -> str:
    """The command that repeats a run: its preset and what differs from it."""
    saved, preset = run.config.to_dict(), run.config.preset
    words = _differences(flatten(saved), flatten(resolve(preset).config.to_dict())) if preset else []
    if not preset or resolve(preset, words).config.to_dict() != saved:
        return "diabolo train config.json"
    return shlex.join(["diabolo", "train", preset, *words])


def command_of_prior(saved: Mapping[str, Any], preset: str, name: str) -> str:
    """The command that repeats a fit: the prior of the run's preset, or one by name, and what differs from it."""
    kind = saved["prior"]["name"]
    for first in ([], [f"prior={kind}"]):
        try:
            base = flatten(resolve_prior(first, preset).to_dict())
        except UsageError:
            continue
        words = [*first, *_differences(flatten(saved), base)]
        if base["prior.name"] == kind and resolve_prior(words, preset).to_dict() == saved:
            return shlex.join(["diabolo", "fit-prior", "RUN", *words, *([] if name == kind else ["--name", name])])
    raise UsageError(f"the configuration of {name} cannot be said as a command", "Its schema has changed since.")


def _differences(found: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    skipped = {"schema", "preset"}
    return [
        f"{key.removesuffix('.name')}={plain(value)}"
        for key, value in found.items()
        if key not in skipped and (key not in base or base[key] != value)
    ]


def commit() -> str:
    """The commit of this checkout, "-dirty" where files have changed since."""
    words = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    done = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, encoding="utf-8", check=False)
    return done.stdout.strip() or "not known"


def main(words: Sequence[str]) -> int:
    """Pack, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", default="")
    parser.add_argument("--prior", action="append", default=[])
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--n", type=int)
    parser.add_argument("--features")
    parser.add_argument("--overwrite", action="store_true")
    given = vars(parser.parse_args(words))
    asked = Asked(priors=tuple(given.pop("prior")), **given)
    target = pack(
        asked,
        command=shlex.join([
            "python",
            "tools/pack_pretrained.py",
            *("RUN" if word == str(asked.run) else word for word in words),
        ]),
    )
    found = packaged.about(target)
    size = sum(file["size"] for file in found["files"].values())
    print(f"{packaged.PREFIX}{target.name}: {size:,} bytes; {packaged.told(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
