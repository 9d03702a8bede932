"""The verb that measures samples of a run against real images: measure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from diabolo import listings, registry
from diabolo.config import words
from diabolo.errors import UsageError, did_you_mean
from diabolo.options import DataOptions, Device, Imports, Json, RunPath, existing_run, import_modules
from diabolo.prior_config import OWN
from diabolo.verbs.sampling import Asked, Words, asked_for, class_numbers
from diabolo.verbs.shared import Answer, at_least, progress

if TYPE_CHECKING:
    from diabolo.data.spec import Dataset
    from diabolo.progress import Progress
    from diabolo.runs import Run
    from diabolo.sampling_table import ImageSet

#: Features of colour images of 32x32 where none are named.
_DEFAULT, _SHAPE = "cifar10_classifier", (3, 32, 32)


def measure(
    run: RunPath,
    /,
    *settings: Words,
    features: Annotated[
        str | None,
        Parameter(help=f"The features to measure in; {_DEFAULT} for colour images of 32x32. See `diabolo list`."),
    ] = None,
    n: Annotated[
        int | None,
        Parameter(help="Images of each row (10,000, or as many as the test split has). Numbers depend on it."),
    ] = None,
    seed: Annotated[int, Parameter(help="Of the samples, and of which real images are taken.")] = 0,
    import_: Imports = (),
    device: Device = "auto",
    as_json: Json = False,
    options: DataOptions = DataOptions(),
) -> Answer:
    """Measure samples of a run against the test images, beside training images, reconstructions and closed-form models.

    Frechet and kernel distance in declared features, precision, recall, density, coverage, classes, and whether training images
    were memorised; written to samples.json in the run directory.
    """
    import_modules(import_)
    at_least("--seed", seed, 0)
    if features is not None and features not in registry.names("features"):
        raise UsageError(f"unknown features {features!r}", did_you_mean(features, registry.names("features")))
    asked = asked_for(words(settings))
    existing_run(run)
    from diabolo import runs
    from diabolo.data import load
    from diabolo.engine import pick_device
    from diabolo.features import load as load_features

    opened, where = runs.Run(run), pick_device(device)
    name = features or _default(opened)
    fixed = load_features(name)
    dataset = load(opened.config.data.name, opened.config.data.params, options.access())
    with progress() as shown:
        found = _measured(opened, asked, dataset, fixed, name, n, seed, where, shown)
    target = opened.place("samples.json")
    runs.write_json(target, found)
    return Answer(data=found) if as_json else Answer((*_told(found), f"samples: {target}"))


def _default(run: Run) -> str:
    shape = tuple(run.env["data"]["spec"]["shape"])
    if shape != _SHAPE:
        raise UsageError(
            f"no features are chosen for images of shape {shape}",
            f"{_DEFAULT}, which is taken where none are named, reads colour images of 32x32.",
            f"Name some: --features {' or '.join(name for name in registry.names('features') if name != _DEFAULT)}",
        )
    return _DEFAULT


def _measured(
    run: Run,
    asked: Asked,
    dataset: Dataset,
    features: Any,
    name: str,
    n: int | None,
    seed: int,
    device: Any,
    shown: Progress,
) -> dict[str, Any]:
    """The table of a run's samples and of the sets that they are to be read by, as `sampling_table.measure` gives it."""
    from diabolo import fitted, sampling, sampling_table

    run.check_data(dataset)
    sampling.check_levels(dataset.spec)
    n = sampling_table.usual_n(dataset, n)
    prior, classes = fitted.chosen(run, asked.prior), class_numbers(run, asked.classes, n, whole=True)
    for other in fitted.names(run) if asked.prior is None else []:
        if (state := fitted.state(run, other)) not in fitted.ENDED:
            shown.say(f"passed over: the prior {other}, whose fit is {state}")
    samples = sampling.draw(run, n, seed, classes, asked.guidance, prior=prior, device=device, progress=shown)
    shown.say(f"closed-form models of {len(dataset.train):,} training images")
    sets = [
        sampling_table.floor(dataset, n, seed),
        sampling_table.reconstructions(run, dataset, n, seed, device=device, progress=shown),
        *_closed_forms(dataset, n, seed, shown),
        sampling_table.ImageSet(f"samples of {run.name}", "samples", samples, classes),
    ]
    found = sampling_table.measure(sets, dataset, features, name, device=device, progress=shown)
    found["about"] |= {
        "seed": seed,
        "weights_sha256": _weights(run),
        **({} if prior == OWN else {"prior_weights_sha256": fitted.weights(run, prior)}),
        "drawn": asked.sentence(prior, fitted.state(run, prior)),
    }
    return found


def _closed_forms(dataset: Dataset, n: int, seed: int, shown: Progress) -> Iterator[ImageSet]:
    """Samples of what has a closed form; of pPCA only where it can be fitted, which is said."""
    from diabolo import sampling_table

    try:
        yield sampling_table.ppca(dataset, n, seed)
    except UsageError as error:
        shown.say(f"no row of pPCA: {error.what}. {error.why}")
    if dataset.train.labels is not None and dataset.spec.classes:
        yield sampling_table.gaussians(dataset, n, seed)


def _weights(run: Run) -> str:
    from diabolo.runs import sha256

    return sha256(run.path / "weights.safetensors")


def _told(found: Mapping[str, Any]) -> tuple[str | Table, ...]:
    from diabolo.sampling_table import cells, headings, notes

    heading, *others = notes(found)
    drawn = f"samples: {found['about']['drawn']}"
    rows = listings.table(*headings(found["about"]))
    for row in found["rows"]:
        rows.add_row(*cells(row))
    seen = [_entropy(row) for row in found["rows"] if "class_entropy" in row]
    return (heading, rows, *(f"  {note}" for note in (drawn, *others, *seen)))


def _entropy(row: Mapping[str, Any]) -> str:
    """A line on the classes that are seen in a set."""
    found = row["class_entropy"]
    counts = " ".join(str(count) for count in found["counts"])
    of = f"entropy {found['value']:.3f} +- {found['se']:.3f} of {found['of']:.3f} nats"
    return f"classes seen in {row['set']}: {counts}; {of}"


VERBS = (measure,)
