"""The verb sample: draw from a run's prior, its own or one that was fitted afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diabolo.config import words
from diabolo.errors import UsageError, did_you_mean
from diabolo.options import Imports, RunPath, existing_run, import_modules
from diabolo.prior_config import OWN
from diabolo.verbs.shared import Answer, at_least

if TYPE_CHECKING:
    from torch import Tensor

    from diabolo.runs import Run

#: The word for a row of each class.
EACH = "each"
Words = Annotated[
    str,
    Parameter(
        help="class=NAME (or each), guidance=2 and prior=NAME, where a prior was fitted; prior=own is the model's own."
    ),
]


@dataclass(frozen=True)
class Asked:
    """What is asked of the samples: a class's name or `each`, guidance (1: none), the name of a prior."""

    classes: str | None
    guidance: float
    prior: str | None

    def sentence(self, name: str, state: str) -> str:
        """How images are drawn, from the prior called `name`, whose fit has ended in this `state`."""
        given = f"z ~ p(z | y), class {self.classes}, guidance {self.guidance:g}" if self.classes else "z ~ p(z)"
        unfinished = "" if state == "finished" else f" ({state} before its last step)"
        whence = "the model's own" if name == OWN else f"{name}, fitted to the codes{unfinished}"
        return f"decoder means, {given}; prior: {whence}"


def sample(
    run: RunPath,
    /,
    *settings: Words,
    n: Annotated[int, Parameter(help="How many images; with class=each, of each class.")] = 64,
    seed: int = 0,
    temperature: Annotated[float, Parameter(help="Spread of z: 1 is the prior itself.")] = 1.0,
    import_: Imports = (),
    out: Annotated[Path | None, Parameter(help="The PNG file; samples.png in the run directory.")] = None,
) -> Answer:
    """Draw z from the prior and write a grid of decoder means as a PNG: from the prior fitted last, else the model's own."""
    import_modules(import_)
    at_least("--n", n, 1)
    at_least("--seed", seed, 0)
    if out is not None and out.is_dir():
        raise UsageError(f"--out {out} is a folder", "Samples are one PNG file.")
    if not 0 < temperature < math.inf:
        raise UsageError(f"--temperature {temperature} is refused", "It must be a number greater than 0.")
    asked = asked_for(words(settings))
    existing_run(run)
    from diabolo import fitted, sampling
    from diabolo.pictures import sample_grid
    from diabolo.runs import Run, write_bytes

    opened = Run(run)
    name = fitted.chosen(opened, asked.prior)
    y = class_numbers(opened, asked.classes, n)
    count = n if y is None else len(y)
    model = fitted.model_of(opened, name)
    images = sampling.means(model, count, seed, y, temperature=temperature, guidance=asked.guidance)
    target = out or opened.place("samples.png")
    write_bytes(target, sample_grid(images, math.ceil(math.sqrt(n)) if asked.classes != EACH else n))
    how = asked.sentence(name, fitted.state(opened, name))
    return Answer((f"samples: {target}  (n = {count}, {how}; temperature {temperature:g}, seed {seed})",))


def asked_for(given: Mapping[str, str]) -> Asked:
    """The settings, refused where they are none, before torch is imported."""
    for key in given:
        if key not in {"class", "guidance", "prior"}:
            why = did_you_mean(key, ["class", "guidance", "prior"])
            raise UsageError(f"unknown setting {key!r}", why)
    try:
        guidance = float(given.get("guidance", 1))
    except ValueError:
        guidance = math.nan
    if not 0 <= guidance < math.inf:
        raise UsageError(f"guidance={given['guidance']} is refused", "It must be a number, at least 0; 1 is none.")
    if guidance != 1 and "class" not in given:
        raise UsageError(
            f"guidance={guidance:g} without a class is refused",
            "Guidance pushes towards a class.",
            "Add class=NAME or class=each.",
        )
    return Asked(given.get("class"), guidance, given.get("prior"))


def class_numbers(run: Run, asked: str | None, n: int, *, whole: bool = False) -> Tensor | None:
    """Class numbers of the images that are drawn: n, or n of each class; with `whole` n in all, of each class in turn.

    Raises:
        UsageError: for a class that the run's data do not have.
    """
    import torch

    from diabolo.sampling import each_in_turn

    if asked is None:
        return None
    known: Sequence[str] = run.env["data"]["spec"]["classes"]
    if not known:
        raise UsageError(f"the data of {run.path} have no classes", f"So there is no class={asked}.", "Leave it out.")
    if asked == EACH:
        return each_in_turn(n, len(known)) if whole else torch.arange(len(known)).repeat_interleave(n)
    if asked not in known:
        raise UsageError(f"{run.path} knows no class {asked!r}", did_you_mean(asked, [*known, EACH]))
    return torch.full((n,), known.index(asked))


VERBS = (sample,)
