"""The command line: the verbs, and the only place that prints. Results go to stdout, progress and errors to stderr.

torch is imported only once a command is known to be right, so that help, listings and usage errors are quick.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from diabolo import choices, durations, language, launch, listings, packaged, registry, verbs
from diabolo import config as configuration
from diabolo.data.access import Access
from diabolo.errors import DiaboloError, UsageError, not_finite
from diabolo.options import DataOptions, Device, Imports, Json, Lang, Override, RunPath
from diabolo.options import existing_run as _existing_run
from diabolo.options import import_modules as _import
from diabolo.options import k_or_se as _k_or_se
from diabolo.options import say as _say
from diabolo.prior_config import is_fit
from diabolo.progress import Progress
from diabolo.verbs import packing, priors

if TYPE_CHECKING:
    from diabolo.data import Dataset
    from diabolo.evaluation import Settings
    from diabolo.runs import Run

app = App(
    name="diabolo",
    help="The workbench for autoencoders and variational autoencoders: train, measure, look inside, sample.",
    version=lambda: importlib.metadata.version("diabolo"),
    default_parameter=Parameter(negative=(), show_default=True),
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
data_app = App(name="data", help="Get, list, verify, export, check and pack data sets.")
app.command(data_app)
for _verb in verbs.VERBS:  # they return an Answer, which is printed here
    app.command(_verb)
data_app.command(packing.pack)


# ------------------------------------------------------------------------------------------------ verbs
@app.command
def train(
    preset: Annotated[
        str | None,
        Parameter(
            help="A preset (see `diabolo list`), folder:PATH with your own images, or a run's config.json to repeat."
        ),
    ] = None,
    /,
    *overrides: Override,
    out: Annotated[
        Path | None, Parameter(help="The run directory; runs/PRESET-N where left out. Never overwritten.")
    ] = None,
    resume: Annotated[Path | None, Parameter(help="Go on with this run instead of starting one.")] = None,
    time: Annotated[
        str | None, Parameter(help="Stop each run in good order after 90s, 5m or 1h30m of training in this process.")
    ] = None,
    smoke: Annotated[
        bool, Parameter(help="A few steps and small K: does everything run? Numbers mean nothing.")
    ] = False,
    import_: Imports = (),
    evaluate_after: Annotated[
        bool, Parameter(name="--evaluate", negative="--no-evaluate", help="Evaluate on the test split and report.")
    ] = True,
    device: Device = "auto",
    lang: Lang = "en",
    as_json: Json = False,
    options: DataOptions = DataOptions(),
) -> int:
    """Train a preset, then evaluate it and write its report; seed=0,1,2 makes one run each.

    For folder:PATH the preset and what fits the folder are chosen, and printed as the command that repeats the run.
    """
    _import(import_)
    language.check(lang)
    if smoke:
        overrides = _smoke_overrides(overrides, time, resume)
    access, limit = options.access(), math.inf if time is None else durations.seconds(time)
    if resume is not None and not (preset or overrides or out) and is_fit(resume):
        return _show(priors.resumed(resume, options, device, limit, as_json))
    choice = _choice(preset, overrides, out, resume)
    if choice:
        preset, overrides = choices.PRESET, choice.overrides
    plans = _train_plans(preset, overrides, out, resume)
    launch.refuse_several(len(plans))
    data = choice.dataset(_say) if choice else None
    finished, measured = [], []
    with _progress() as progress:
        for config, place in plans:
            how: dict[str, Any] = {"access": access, "device": device, "progress": progress, "seconds": limit}
            run = _trained(config, place, data, how)
            if launch.here().rank:
                return 0  # the first process measures, and speaks
            if evaluate_after and _measurable(run):
                _measure(run, options, device, lang, progress, data)
                measured.append(run)
            finished.append(run)
    return _show_trained(finished, measured, as_json)


@app.command
def evaluate(
    run: RunPath,
    /,
    *,
    split: Annotated[Literal["test", "validation", "train"], Parameter(help="The split to measure on.")] = "test",
    k: Annotated[int | None, Parameter(help="Draws of z for log p(x) (1,000); 0: it is not estimated.")] = None,
    se: Annotated[
        float | None,
        Parameter(
            help="Instead of --k: draws from a proposal fitted to each image, until its log p(x) has this Monte-Carlo SE, nats."
        ),
    ] = None,
    images: Annotated[int | None, Parameter(help="Images for log p(x), stratified; 0 for all (500).")] = None,
    elbo_samples: Annotated[int | None, Parameter(help="Draws of z for the bound on every image (10).")] = None,
    full: Annotated[bool, Parameter(help="K = 5,000 on all images.")] = False,
    import_: Imports = (),
    device: Device = "auto",
    as_json: Json = False,
    options: DataOptions = DataOptions(),
) -> int:
    """Measure a run: ELBO, log p(x) by importance sampling, rate, distortion, errors, active units, probes."""
    _import(import_)
    _k_or_se(5000 if full and k is None else k, se)
    given: dict[str, Any] = {"split": split, "k": k, "se": se, "images": images, "elbo_samples": elbo_samples}
    if full:
        given |= {"k": given["k"] or 5000, "images": given["images"] or 0}
    _existing_run(run)
    from diabolo.evaluation import Settings
    from diabolo.runs import Run

    settings = Settings(**{key: value for key, value in given.items() if value is not None})
    opened = Run(run)
    with _progress() as progress:
        result = _evaluate(opened, settings, options, device, progress)
    if as_json:
        print(json.dumps(result))
    else:
        _print_evaluations([(opened, result)])
        print(f"evaluation: {opened.place('evaluation.json')}")
        if (run / "report.html").exists():
            _say(f"the report shows the evaluation before this one; write it again with: diabolo report {run}")
    return 0


@app.command
def report(run: RunPath, /, *, import_: Imports = (), lang: Lang = "en", options: DataOptions = DataOptions()) -> int:
    """Write a run's report: one self-contained HTML file."""
    _import(import_)
    language.check(lang)
    _existing_run(run)
    packaged.refuse_change(run, "evaluate", "report")
    from diabolo.runs import Run

    print(f"report: {_report(Run(run), options, lang)}")
    return 0


@app.command(name="list")
def list_(*, as_json: Json = False) -> int:
    """List presets with their parts, reference and expected number, trained models that come along, and components."""
    presets = {name: configuration.read_preset(name) for name in configuration.preset_names()}
    if as_json:
        components = {slot: registry.names(slot) for slot in registry.SLOTS}
        models = {name: packaged.about(packaged.ROOT / name) for name in packaged.names()}
        print(json.dumps({"presets": presets, "pretrained": models, "components": components}))
        return 0
    _out().print(listings.preset_table(presets))
    print()
    if packaged.names():
        _out().print(listings.pretrained_table())
        print()
    for slot in registry.SLOTS:
        print(f"{slot:11} {', '.join(registry.names(slot))}")
    return 0


@app.command(name="config")
def config_(
    preset: Annotated[str, Parameter(help="A preset, folder:PATH, or a run's config.json.")],
    /,
    *overrides: Override,
    import_: Imports = (),
    as_json: Json = False,
) -> int:
    """Print the resolved configuration, each value with its origin; of folder:PATH, what would be chosen."""
    _import(import_)
    choice = _choice(preset, overrides)
    resolved = choice.resolved() if choice else _resolve(preset, overrides)
    if as_json:
        print(json.dumps(resolved.config.to_dict(), indent=1))
        return 0
    _out().print(listings.config_table(resolved, configuration.flatten(resolved.config.to_dict())))
    return 0


# ------------------------------------------------------------------------------------------------ data
@data_app.command(name="get")
def data_get(name: str, /, *, options: DataOptions = DataOptions()) -> int:
    """Fetch a data set into the cache and check it."""
    from diabolo.data import sources

    found = sources.get(name, options.access())
    for path in found:
        print(path)
    if not found:
        print(f"{name} needs no files")
    return 0


@data_app.command(name="list")
def data_list(*, as_json: Json = False) -> int:
    """List the data sets: size, whether they are in the cache, where they come from."""
    from dataclasses import asdict

    from diabolo.data import manage

    rows = manage.describe(Access())
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return 0
    _out().print(listings.data_table(rows))
    return 0


@data_app.command(name="verify")
def data_verify(name: str, /) -> int:
    """Check a cached data set by size and SHA-256; fetches and changes nothing."""
    from diabolo.data import manage

    rows = manage.verify(name, Access())
    for row in rows:
        print(f"{'ok  ' if row.ok else 'BAD '} {row.size:>11,} B  {row.sha256[:16] or 'missing':16}  {row.file}")
    if not rows:
        print(f"{name} needs no files")
    return 0 if all(row.ok for row in rows) else 3


@data_app.command(name="export")
def data_export(name: str, folder: Path, /, *, split: str | None = None, options: DataOptions = DataOptions()) -> int:
    """Write a data set's decoded files into a folder, for other programs."""
    from diabolo.data import manage

    for path in manage.export(name, folder, options.access(), split):
        print(path)
    return 0


@data_app.command(name="check")
def data_check(path: Path, /, *, as_json: Json = False) -> int:
    """Read a folder of images as data=folder:PATH would, and list each file that cannot be read; or all of a packed data set."""
    from diabolo.data import images, shards

    if shards.is_packed(path):
        return _show(packing.check(path, as_json))
    reading = images.read_folder(str(path))
    if as_json:
        print(json.dumps(reading.to_dict()))
    else:
        print(reading.note())
        for name, reason in reading.found.skipped:
            print(f"skipped  {name}  {reason}")
        print(f"Train on it with: diabolo train {shlex.quote(f'folder:{path}')}" if reading.tolerable else _INTOLERABLE)
    return 0 if reading.tolerable else 3


_INTOLERABLE = "More than 1 % cannot be read: repair these files or move them away before training."


# ------------------------------------------------------------------------------------------------ shared
def _train_plans(
    preset: str | None, overrides: Sequence[str], out: Path | None, resume: Path | None
) -> list[tuple[Any, Any]]:
    """(configuration, place) of each run to make; (None, run) for one to go on with."""
    if resume is not None:
        if preset or overrides or out:
            raise UsageError(
                "--resume goes on with a run as it is",
                "Its configuration comes from the run.",
                f"Use: diabolo train --resume {resume}",
            )
        _existing_run(resume)
        packaged.refuse_change(resume)
        return [(None, resume)]
    if preset is None:
        raise UsageError(
            "train needs a preset",
            f"There are: {', '.join(configuration.preset_names())}.",
            "For example: diabolo train vae, or your own images with: diabolo train folder:PATH",
        )
    seeds = next((text.partition("=")[2].split(",") for text in overrides if text.startswith("seed=")), None)
    if not seeds or len(seeds) == 1:
        return [(_resolve(preset, overrides).config, out)]
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"seed={','.join(seeds)} names a seed twice", "Each seed makes one run.")
    if out is not None and (out / "config.json").exists():
        raise UsageError(
            f"{out} is a run already", "Several seeds need a folder to put their runs into.", "Choose another --out."
        )
    rest = [text for text in overrides if not text.startswith("seed=")]
    configs = [_resolve(preset, [*rest, f"seed={seed}"]).config for seed in seeds]
    return [(config, out and out / f"seed-{config.seed}") for config in configs]


def _trained(config: Any, place: Any, data: Dataset | None, how: dict[str, Any]) -> Run:
    """One of the plans, carried out by this process or by all that were started with it."""
    from diabolo import distributed, training

    try:
        return training.train(config, out=place, data=data, **how) if config else training.resume(place, **how)
    finally:
        distributed.leave()


def _smoke_overrides(overrides: Sequence[str], time: str | None, resume: Path | None) -> tuple[str, ...]:
    """What --smoke changes, refusing what it cannot go with."""
    set_already = next((text for text in overrides if text.partition("=")[0].strip() == "train.epochs"), None)
    resumed, timed = resume and f"--resume {resume}", time is not None and f"--time {time}"
    other = resumed or timed or set_already
    if other:
        raise UsageError(
            f"--smoke and {other} exclude each other", "A smoke run is one epoch of a few steps, from the start."
        )
    return (*overrides, "train.epochs=1", "train.smoke=true")


def _choice(
    word: str | None, overrides: Sequence[str], out: Path | None = None, resume: Path | None = None
) -> choices.Choice | None:
    """What is chosen for folder:PATH, and said; None for any other word. Wrong words are refused before the folder is read."""
    if word is None or not choices.is_folder(word) or resume:
        return None
    choices.refuse_other_data(word, overrides)
    _train_plans(choices.PRESET, [f"data={word}", *overrides], out, None)
    choice = choices.for_folder(word, overrides, _say)
    _say(f"chosen for {choices.facts_of(choice.reading)}, and repeated by:")
    _say(f"  {choice.command}")
    return choice


def _show_trained(finished: Sequence[Run], measured: Sequence[Run], as_json: bool) -> int:
    if as_json:
        print(json.dumps({str(run.path): run.evaluation() if run in measured else run.status for run in finished}))
        return 0
    _print_evaluations([(run, run.evaluation()) for run in measured])
    for run in finished:
        print(f"run: {run.path}")
        if run in measured:
            print(f"report: {run.path / 'report.html'}")
        if run.config.train.smoke:
            _say("smoke run: everything works; its numbers mean nothing")
    return 0


def _measurable(run: Run) -> bool:
    """Whether the test split has a standard error; where it has none, say what can be looked at instead."""
    if run.env["data"]["splits"]["test"] > 1:
        return True
    _say("not evaluated, and no report: the test split has one example, and one example has no standard error")
    _say(f"  the run is kept; look at: diabolo reconstruct {shlex.quote(str(run.path))} --split train")
    return False


def _resolve(preset: str, overrides: Sequence[str]) -> configuration.Resolved:
    if preset.endswith(".json"):
        return configuration.from_dict(configuration.read_json(Path(preset)), overrides)
    return configuration.resolve(preset, overrides)


def _measure(
    run: Run, options: DataOptions, device: str, lang: str, progress: Progress, dataset: Dataset | None
) -> None:
    """Evaluate a run that was trained, and write its report."""
    from diabolo import evaluation

    settings = evaluation.SMOKE if run.config.train.smoke else evaluation.Settings()
    _evaluate(run, settings, options, device, progress, dataset)
    _report(run, options, lang, dataset)


def _evaluate(
    run: Run,
    settings: Settings,
    options: DataOptions,
    device: str,
    progress: Progress,
    dataset: Dataset | None = None,
) -> dict[str, Any]:
    from diabolo import evaluation

    progress.say(f"evaluating {run.path} on the {settings.split} split")
    return evaluation.evaluate(run, settings, data=dataset, access=options.access(), device=device, progress=progress)


def _report(run: Run, options: DataOptions, lang: str, dataset: Dataset | None = None) -> Path:
    from diabolo import data
    from diabolo.pictures import pictures
    from diabolo.report import write_run_report

    if run.config.data.name == "tensor":  # in memory when it was trained: no pictures of it can be drawn now
        return write_run_report(run, None, classes=run.env["data"]["spec"]["classes"], lang=lang)
    dataset = dataset or data.load(run.config.data.name, run.config.data.params, options.access())
    shown = pictures(run.model(), dataset) if len(dataset.spec.shape) == 3 else None
    return write_run_report(run, shown, classes=dataset.spec.classes, lang=lang)


def _print_evaluations(finished: Sequence[tuple[Run, dict[str, Any]]]) -> None:
    for heading, table, numbers in listings.evaluation_tables(finished):
        print(heading)
        _out().print(table)
        print(f"  {numbers}\n")


def _show(answer: verbs.Answer) -> int:
    if answer.data is not None:
        print(json.dumps(answer.data, allow_nan=False))
    for part in answer.parts if answer.data is None else ():
        print(part) if isinstance(part, str) else _out().print(part)
    return 0


def _out() -> Console:
    """A console on stdout that cuts nothing off where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def _progress() -> Any:
    from diabolo.terminal import TerminalProgress

    return TerminalProgress(sys.stderr)


# ------------------------------------------------------------------------------------------------ entry
def main(tokens: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit code: 0 ok; 1 internal; 2 usage, configuration or unwritable place; 3 data or run
    missing, corrupt or mismatched; 4 diverged; 130 SIGINT; 143 SIGTERM."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")
    logging.getLogger("diabolo").addHandler(_Warnings(logging.WARNING))
    launch.hush()
    try:
        code = _run(list(sys.argv[1:] if tokens is None else tokens))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    if tokens is not None:  # another's process, which goes on
        sys.exit(code)
    launch.end(code)


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _say(f"warning: {record.getMessage()}")


def _run(tokens: list[str]) -> int:
    debug = "--debug" in tokens or os.environ.get("DIABOLO_DEBUG") == "1"
    tokens = [token for token in tokens if token != "--debug"]
    try:
        launch.refuse_other_verbs(tokens)
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        return _show(result) if isinstance(result, verbs.Answer) else int(result or 0)
    except CycloptsError as error:
        launch.speak(expected=True)
        verb = next((f"{token} " for token in tokens if token in {"data", *app}), "")
        _say(f"error: {error}")
        _say(f"See: diabolo {verb}--help")
        return 2
    except DiaboloError as error:
        if debug:
            traceback.print_exc()
        launch.speak(expected=True)
        _say(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:
        raise
    except ValueError as error:
        known = None if debug else not_finite(error)
        if known is None:
            return _internal(error, debug)
        launch.speak(expected=True)
        _say(f"error: {known}")
        return known.exit_code
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except Exception as error:
        return _internal(error, debug)


def _internal(error: Exception, debug: bool) -> int:
    launch.speak(expected=False)
    traceback.print_exc() if debug else _say(
        f"internal error: {error!r}\nThis is a fault of diabolo. Add --debug to see where."
    )
    return 1
