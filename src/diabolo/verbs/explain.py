"""`diabolo explain`: what the loss of a preset or of a run is. Nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from diabolo.config import RunConfig, from_dict, read_json, resolve
from diabolo.data.access import Access
from diabolo.errors import UsageError
from diabolo.listings import table
from diabolo.options import Imports, Json, Override, import_modules
from diabolo.packaged import located
from diabolo.verbs.shared import Answer

if TYPE_CHECKING:
    from diabolo.card import Card
    from diabolo.data.spec import DataSpec


def explain(
    what: Annotated[
        str,
        Parameter(help="A preset (see `diabolo list`), the config.json of a run, a run directory, or pretrained:NAME."),
    ],
    /,
    *overrides: Override,
    import_: Imports = (),
    as_json: Json = False,
) -> Answer:
    """Say what a loss is: bound or not and why, effective beta, sigma^2, unit; measured from its parts. Fetches nothing."""
    import_modules(import_)
    run = located(what)
    if (run / "config.json").is_file():
        if overrides:
            raise UsageError(
                f"{what} is a run, which is what it is: {' '.join(overrides)} cannot be changed",
                remedy=f"For another configuration: diabolo explain {run / 'config.json'} {' '.join(overrides)}",
            )
        found, about = _of_run(run)
    else:
        saved = what.endswith(".json")
        config = (from_dict(read_json(run), overrides) if saved else resolve(what, overrides)).config
        found, about = _of_config(config)
    if as_json:
        return Answer(data={"of": about, **found.to_dict()})
    return Answer((about, _table(found.rows)))


def _table(rows: Sequence[tuple[str, str]]) -> Table:
    shown = table("", "")
    shown.show_header = False
    shown.columns[1].overflow = "fold"
    for label, text in rows:
        shown.add_row(f"{label}:", Text(text))
    return shown


def _of_run(path: Path) -> tuple[Card, str]:
    """The card of a run with its weights, or at its first step where it has none yet."""
    from diabolo import card
    from diabolo.data.scan import Facts
    from diabolo.models.build import build_objective
    from diabolo.runs import Run, spec_from_dict

    run = Run(path)
    spec, stored = spec_from_dict(run.env["data"]["spec"]), run.loss_card()
    facts = Facts(**stored["data"]) if stored else None
    if not (path / "weights.safetensors").is_file():
        return card.of_config(run.config, spec, facts), f"{path}: before training, data {spec.name}"
    objective = build_objective(run.config.objective.to_dict(), spec)
    steps = card.steps_of(run.config, spec)
    found = card.measure(run.model(), objective, spec, steps=steps, facts=facts)
    return found, f"{path}: with its weights, data {spec.name}"


def _of_config(config: RunConfig) -> tuple[Card, str]:
    from diabolo import card
    from diabolo.data.scan import check, scan

    name, dataset = config.preset or "this configuration", _at_hand(config)
    if dataset is not None:
        facts, likelihood = scan(dataset), config.model.likelihood.name
        check(facts, dataset.spec.name, likelihood, card.accepted(likelihood), card.discrete(likelihood))
        return card.of_config(config, dataset.spec, facts), f"{name}: before training, data {config.data.name}"
    spec = _registered(config)
    known = "not in the cache: shape as registered, values not looked at" if spec else "not at hand: D is not known"
    return card.of_config(config, spec), f"{name}: before training, data {config.data.name} ({known})"


def _at_hand(config: RunConfig) -> Any:
    """The data set, where that takes no download; None where it does, or where only Python can pass it."""
    from diabolo import data
    from diabolo.data import manage

    access = Access(offline=True)
    absent = any(row.name == config.data.name and row.cached is False for row in manage.describe(access))
    return None if absent or config.data.name == "tensor" else data.load(config.data.name, config.data.params, access)


def _registered(config: RunConfig) -> DataSpec | None:
    """Shape and kind of a data set from the catalogue; None where they do not stand there."""
    from diabolo.data.catalogue import COLLECTIONS
    from diabolo.data.spec import DataSpec

    collection = COLLECTIONS.get(config.data.name)
    images = collection.files[0].shape if collection else ()
    if len(images) != 3:
        return None
    count = images[0] - int(config.data.params.get("validation", 0))
    binary = bool(config.data.params.get("binarize"))
    return DataSpec(
        name=config.data.name, shape=(1, *images[1:]), values="binary" if binary else "grey", examples=count
    )


VERBS = (explain,)
