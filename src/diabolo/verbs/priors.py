"""The verb fit-prior: fit a prior to the codes of a trained model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from diabolo import durations, packaged
from diabolo.config import read_json
from diabolo.errors import UsageError
from diabolo.options import DataOptions, Device, Imports, Json, RunPath, existing_run, import_modules
from diabolo.prior_config import OWN, resolve_prior
from diabolo.verbs.shared import Answer, progress

Words = Annotated[
    str,
    Parameter(
        help="prior=NAME, then key=value, for example prior=flow_matching train.epochs=30 flips=true; preset=NAME, or nothing, "
        "where a prior belongs to a preset."
    ),
]


def fit_prior(
    run: RunPath,
    /,
    *words: Words,
    name: Annotated[str, Parameter(help="Its name below RUN/priors; the prior's own where left out.")] = "",
    time: Annotated[str | None, Parameter(help="Stop in good order after 90s, 5m or 1h30m.")] = None,
    import_: Imports = (),
    device: Device = "auto",
    as_json: Json = False,
    options: DataOptions = DataOptions(),
) -> Answer:
    """Fit a prior to the codes of a trained model, which stays as it is: what `sample` then draws from.

    Go on with one that was interrupted with: diabolo train --resume RUN/priors/NAME
    """
    import_modules(import_)
    packaged.refuse_change(run, "fit-prior")
    config, limit = resolve_prior(words, _preset_of(run)), math.inf if time is None else durations.seconds(time)
    if time is not None and config.closed:
        raise UsageError("--time means nothing here", f"A {config.prior.name} prior is fitted in closed form.")
    if name and (Path(name).name != name or name.startswith(".") or name == OWN):
        why = "That is the model's own prior." if name == OWN else "It is the name of one folder below RUN/priors."
        raise UsageError(f"--name {name} is refused", why)
    existing_run(run)
    from diabolo.fitting import fit_prior
    from diabolo.runs import Run

    with progress() as shown:
        path = fit_prior(
            Run(run), config, name=name, access=options.access(), device=device, progress=shown, seconds=limit
        )
    return shown_fit(path, as_json)


def _preset_of(run: Path) -> str:
    """The preset of a run, which a prior may belong to."""
    config = run / "config.json"
    return str(read_json(config).get("preset", "")) if config.is_file() else ""


def resumed(path: Path, options: DataOptions, device: str, time: float, as_json: bool) -> Answer:
    """Go on with a fit that was interrupted."""
    from diabolo.fitting import resume_fit

    with progress() as shown:
        resume_fit(path, access=options.access(), device=device, progress=shown, seconds=time)
    return shown_fit(path, as_json)


def shown_fit(path: Path, as_json: bool) -> Answer:
    """What a fit gave."""
    found = read_json(path / "evaluation.json")
    return Answer(data=found) if as_json else Answer(tuple(_lines(path, found)))


def _lines(path: Path, found: Mapping[str, Any]) -> Iterator[str]:
    words = {"rate": "rate", "rate_given_class": "rate, class known", "own_rate": "the model's own", "gain": "gain"}
    for key, word in words.items():
        if key in found:
            entry = found[key]
            yield f"{word:18} {entry['value']:10.2f} +- {entry['se']:.2f} nats/example  (test, n = {entry['n']:,})"
    about = found["about"]
    if about["density"] != "exact":
        yield "this prior gives samples and has no density: no rate, and no bound on log p(x)"
    if about["smoke"]:
        yield "smoke run: everything works; its numbers mean nothing"
    if about["state"] != "finished":
        yield f"the fit was {about['state']} before its last step; go on with: diabolo train --resume {path}"
    yield f"prior: {path}\ndraw from it with: diabolo sample {path.parent.parent}"


VERBS = (fit_prior,)
