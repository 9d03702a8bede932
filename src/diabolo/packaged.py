"""Trained models inside the package, asked for as `pretrained:NAME` wherever a run is read. Imports no torch.

    pretrained/NAME/     a run as `runs` describes it: config.json, env.json, status.json, metrics.jsonl, timing.jsonl,
                         loss_card.json, evaluation.json, weights.safetensors in half precision, priors/NAME/...
    about.json           how it came to be (commands, seed, machine, commit), what the stored weights were measured to give, and
                         the SHA-256 of every other file, which is checked whenever the model is read

They are written by tools/pack_pretrained.py and by nothing else: what would go into a run goes into the current folder.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diabolo.config import read_json
from diabolo.errors import DataError, UsageError, did_you_mean

PREFIX = "pretrained:"
ROOT = Path(__file__).parent / "pretrained"
#: Bytes of all of them together: they come with every installation.
LARGEST = 10_000_000


def names() -> list[str]:
    """The models of the package."""
    return sorted(path.parent.name for path in ROOT.glob("*/about.json"))


def located(run: str | Path) -> Path:
    """The directory of a run: of `pretrained:NAME` the package's, of anything else the path itself.

    Raises:
        UsageError: if the package has no model of this name.
    """
    word = str(run)
    if not word.startswith(PREFIX):
        return Path(run)
    name = word.removeprefix(PREFIX)
    if name not in names():
        raise UsageError(f"no pretrained model {name!r}", did_you_mean(name, names()), "See them with: diabolo list")
    return ROOT / name


def is_packaged(run: Path) -> bool:
    """Whether a directory lies in the package, where nothing is written."""
    return run.resolve().is_relative_to(ROOT.resolve())


def place(run: Path, name: str) -> Path:
    """Where a file about a run goes: into it, or for a pretrained one into the current folder, its name in front."""
    return Path(f"{run.name}-{name}") if is_packaged(run) else run / name


def about(run: Path) -> dict[str, Any]:
    """What about.json of a pretrained model says.

    Raises:
        DataError: if it cannot be read, or pins no files.
    """
    found = read_json(run / "about.json")
    if not isinstance(found.get("files"), dict) or not isinstance(found.get("priors"), dict):
        raise DataError(f"{run / 'about.json'} describes no pretrained model", remedy="Install diabolo again.")
    return found


def copied(path: Path, *verbs: str) -> str:
    """The sentence that says how a pretrained model is copied, and `verbs` work on the copy."""
    words = [f"cp -r {shlex.quote(str(path))} {path.name}", *(f"diabolo {verb} {path.name}" for verb in verbs)]
    return f"Work on a copy: {' && '.join(words)}"


def refuse_change(run: str | Path, *verbs: str) -> None:
    """Refuse to write into a pretrained model, with the commands that copy it and give `verbs` the copy; without verbs, with
    the one that repeats its training.

    Raises:
        UsageError: for a pretrained model, and for a name that the package does not have.
    """
    path = located(run)
    if not is_packaged(path):
        return
    again = f"diabolo train {shlex.quote(str(path / 'config.json'))}"
    raise UsageError(
        f"{PREFIX}{path.name} stays as it is",
        "It is part of the installed package.",
        copied(path, *verbs) if verbs else f"Repeat its training with: {again}",
    )


def told(found: Mapping[str, Any]) -> str:
    """The result of an about.json in a line, each number with its unit, and how many images it is of."""
    parts = [f"{_numbers(found['result'])}{_least(found['result'], 'n = {:,}')}"]
    for name, prior in found["priors"].items():
        parts.append(f"prior {name}: {_numbers(prior['result'])}{_least(prior['result'], '{:,} samples')}")
    return "; ".join(parts)


def _numbers(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{what} {_number(entry)}" for what, entry in result.items()) or "not measured"


def _least(result: Mapping[str, Any], words: str) -> str:
    """How many images the numbers are of: some count the images that they are held against, which are more."""
    return f" ({words.format(min(entry['n'] for entry in result.values()))})" if result else ""


def _number(entry: Mapping[str, Any]) -> str:
    return f"{100 * entry['value']:.1f} %" if entry["unit"] == "share" else f"{entry['value']:.4g} {entry['unit']}"
