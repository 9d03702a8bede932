"""The sharp chapter: CIFAR-10 reconstructions that are sharp, what makes them so, and samples from three priors of one model.

    OUT/sharp/                          the main run, preset cifar10-sharp; its priors are priors/mixture, priors/flow_matching
                                        (that which belongs to the preset)
    OUT/pretrained                      plan pretrained: the model of the package in the place of the main run, copied; what is in
                                        the package is not made again, the rest is made of the copy
    OUT/sharp-60                        preset cifar10-sharp-60, beside the main run: trained by the full plan, shown by others if
                                        it lies here finished
    OUT/short, OUT/short-fixed, ...     the ablation: one change each against a short version of the main run (`ABLATION`)
    OUT/c1, OUT/c4, OUT/c5-leaky        the article's models; those of OUT/../cifar10 are used where they are finished
    OUT/samples.json, OUT/nearest.safetensors   the table of samples, row by row, and the samples nearest to training images
    OUT/pictures/*.png, OUT/measures.json, OUT/report.html

A run or prior that was made elsewhere with the same configuration, data and source is used if it is copied to its place. Finished
parts are used again, see `parts`; a row of the table of samples is, as long as nothing that it was measured from has changed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diabolo import data as data_module
from diabolo import fitted, packaged, runs, workers
from diabolo.chapters import cifar10, parts
from diabolo.chapters.sharp_measures import Asked, Measured, measure, weights_of
from diabolo.chapters.sharp_page import verdicts, write_page
from diabolo.chapters.sharp_pictures import write_pictures
from diabolo.config import RunConfig, resolve
from diabolo.data import Access, Dataset
from diabolo.engine import environment, pick_device
from diabolo.evaluation import Settings
from diabolo.language import say
from diabolo.prior_config import resolve_prior
from diabolo.progress import Progress
from diabolo.workers import Job

_PRESET = "cifar10-sharp"
_PACKED = f"{packaged.PREFIX}{_PRESET}"
_BOTH = "model.encoder.{0}={1} model.decoder.{0}={1}".format
#: The main run, and that of the preset which takes an hour.
MAIN = "sharp"
LONG, _LONG_PRESET = "sharp-60", "cifar10-sharp-60"
#: Name of each run of the ablation -> what it changes of the preset; the first changes the number of epochs only, as all do. A
#: vector has no shortcut and two affine maps of 4.7 million parameters each, so it is held against the run without a shortcut.
ABLATION: dict[str, str] = {
    "short": "",
    "short-fixed": "model.likelihood=gaussian model.likelihood.scale=0.7071067811865476",
    "short-vector": "model.latent=512",
    "short-no-blocks": _BOTH("blocks", 0),
    "short-no-shortcut": _BOTH("shortcut", "false"),
}
#: The article's models, as the CIFAR-10 chapter defines them.
ARTICLE = ("c1", "c4", "c5-leaky")
#: Name of each prior that is fitted to the main run -> how.
PRIORS: dict[str, tuple[str, ...]] = {
    "mixture": ("prior=mixture", "prior.shrinkage=4"),
    "flow_matching": (f"preset={_PRESET}",),
}

#: A channel of the code may sleep through the first epochs, since its rate is paid for before it is of use; so in the ablation
#: the weight of the rate grows from 0 to 1 over so many steps, about an epoch.
WARMUP = 800
_AWAKE = f"objective.warmup_steps={WARMUP}"
_SETTINGS = Settings(k=0, elbo_samples=4, curve_k=(), curve_images=0, probes=False)
_SMOKE = ("train.epochs=1", "train.smoke=true")
#: Of the networks: three steps at once at the full rate may end in scales that are no numbers.
_GENTLE = (*_SMOKE, "train.lr=0.0001")


@dataclass(frozen=True)
class Plan:
    """How much of the chapter is done: whether the main run is that of the package, what is changed of it, of the ablation and
    of each prior, whether the run of an hour is trained, which models of the article by which plan of their chapter, what is
    asked of the samples."""

    pretrained: bool = False
    main: tuple[str, ...] = ()
    long: bool = False
    short: tuple[str, ...] = ("train.epochs=3", _AWAKE)
    ablation: tuple[str, ...] = tuple(ABLATION)
    article: tuple[str, ...] = ARTICLE
    theirs: str = "normal"
    priors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    asked: Asked = Asked()
    settings: Settings = _SETTINGS
    data: tuple[str, ...] = ()


PLANS = {
    "normal": Plan(),
    "pretrained": Plan(pretrained=True),
    "full": Plan(long=True, short=("train.epochs=19", _AWAKE), theirs="full"),
    "quick": Plan(main=("train.epochs=3",), ablation=(), article=("c1", "c4"), theirs="quick", asked=Asked(n=2000)),
    "smoke": Plan(
        main=_GENTLE,
        short=_GENTLE,
        theirs="smoke",
        priors={"flow_matching": _SMOKE},
        asked=Asked(n=100),
        settings=Settings(k=0, elbo_samples=2, curve_k=(), curve_images=0, probes=False),
        data=("data=clouds", "data.examples=600"),
    ),
}


def reproduce(
    out: Path = Path("runs/reproduce/sharp"),
    *,
    plan: str = "normal",
    access: Access | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    lang: str = "en",
    data: Sequence[str] = (),
) -> parts.Result:
    """Train, evaluate, fit and compare what is not there yet, then write pictures and report. `data`: overrides that put other
    images in the place of CIFAR-10, as the smoke plan's do.

    Raises:
        DataError: if CIFAR-10 cannot be had.
        InterruptedRun: after SIGINT or SIGTERM; the same command goes on.
    """
    began, progress, chosen, reused = time.monotonic(), progress or Progress(), PLANS[plan], list[str]()
    images = [*chosen.data, *data]
    config = resolve(_PRESET, [*images, *chosen.main]).config
    dataset = data_module.load(config.data.name, config.data.params, access)
    made = {MAIN: _main(out, config, dataset, chosen, device, progress, reused)}
    made |= _long(out / LONG, images, dataset, chosen, device, progress, reused)
    jobs = _jobs(out, plan, images, dataset)
    others = workers.run(jobs, access=access, device=device, progress=progress, reused=reused) if jobs else []
    made |= {run.name: run for run in others}
    report, fingerprint = out / "report.html", _fingerprint(made, chosen, lang)
    if report.is_file() and parts.stamp(out) == fingerprint:
        reused.append(str(report))
        return parts.Result(report, [*made.values()], reused, time.monotonic() - began)
    found = measure(out, made, dataset, chosen.asked, list(PRIORS), device, progress)
    stages = _stages(made, found, chosen)
    found.numbers |= {"plan": plan, "data": dataset.spec.name, **chosen.asked.to_dict(), "stages": stages}
    found.numbers["machine"] = environment(pick_device(device))
    if chosen.pretrained:
        found.numbers["pretrained"] = packaged.about(packaged.located(_PACKED))
    write_pictures(out / "pictures", found)
    runs.write_json(out / "measures.json", {**found.numbers, **verdicts(made, found)})
    write_page(report, made, found, stages, lang)
    runs.write_json(out / "report.json", {"fingerprint": fingerprint})
    return parts.Result(report, [*made.values()], reused, time.monotonic() - began)


def _main(
    out: Path, config: RunConfig, dataset: Dataset, plan: Plan, device: str, progress: Progress, reused: list[str]
) -> runs.Run:
    """The main run with its evaluation and its priors, on all cores."""
    if plan.pretrained:
        run = parts.pretrained(out / "pretrained", _PACKED, config, dataset, progress, reused)
    else:
        run = parts.trained(out / MAIN, config, dataset, device, progress, reused)
    parts.evaluated(run, dataset, plan.settings, device, progress, reused)
    packed = _packed_priors(plan)
    for name, words in PRIORS.items():
        if name not in packed:
            parts.fitted_prior(
                run, name, resolve_prior([*words, *plan.priors.get(name, ())]), dataset, device, progress, reused
            )
    return run


def _packed_priors(plan: Plan) -> list[str]:
    """The priors that come with the package's model, where the plan takes it."""
    return fitted.names(runs.Run(_PACKED)) if plan.pretrained else []


def _stages(made: Mapping[str, runs.Run], found: Measured, plan: Plan) -> dict[str, float]:
    """Wall seconds of what was made here, by stage."""
    elsewhere = _packed_priors(plan)
    fits = {name: row for name, row in found.numbers["priors"].items() if name not in elsewhere}
    return {
        **parts.stages_of([*made.values()], [made[MAIN]] if plan.pretrained else []),
        say("fitting the priors"): sum(row["seconds"] or 0.0 for row in fits.values()),
        **found.seconds,
    }


def _long(
    path: Path,
    images: Sequence[str],
    dataset: Dataset,
    plan: Plan,
    device: str,
    progress: Progress,
    reused: list[str],
) -> dict[str, runs.Run]:
    """The run of an hour with its evaluation, if the plan wants it or a finished one is there."""
    config = resolve(_LONG_PRESET, images).config
    if not plan.long and not path.exists():
        return {}
    if not plan.long and not parts.stands(path, config, dataset, None):
        progress.say(f"{path}: no finished run of {_LONG_PRESET} with this source and data; left out")
        return {}
    run = parts.trained(path, config, dataset, device, progress, reused)
    parts.evaluated(run, dataset, plan.settings, device, progress, reused)
    return {LONG: run}


def _jobs(out: Path, plan: str, images: Sequence[str], dataset: Dataset) -> list[Job]:
    """The ablation and the article's models. Of these, one that the CIFAR-10 chapter has finished is taken from there, and asked
    for with that chapter's settings, so that its evaluation stands."""
    chosen = PLANS[plan]
    theirs = cifar10.PLANS[chosen.theirs]
    jobs = [
        Job(out / name, resolve(_PRESET, [*images, *ABLATION[name].split(), *chosen.short]).config, chosen.settings)
        for name in chosen.ablation
    ]
    for name in chosen.article:
        config, finished = cifar10.config_of(name, theirs, images), out.parent / "cifar10" / name
        there = parts.stands(finished, config, dataset, theirs.settings)
        jobs.append(Job(finished, config, theirs.settings) if there else Job(out / name, config, chosen.settings))
    return jobs


def _fingerprint(made: Mapping[str, runs.Run], plan: Plan, lang: str) -> str:
    """What decides the report: its runs, the weights of the priors, and what is asked of the samples."""
    priors = [weights_of(made[MAIN], name) for name in PRIORS]
    rest = json.dumps([parts.fingerprint([*made.values()], lang), *priors, plan.asked.to_dict()])
    return hashlib.sha256(rest.encode()).hexdigest()
