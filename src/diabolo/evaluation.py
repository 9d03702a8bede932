"""Evaluation of a run: gathers the evidence once, with noise keyed by image, and writes evaluation.json.

The test set is touched here, and (for display, where a preset asks for it) by the curve of training; nothing is chosen by it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from diabolo import adaptive, registry, runs
from diabolo import data as data_module
from diabolo.code_length import bits, code_length, dequantized
from diabolo.data import Access, Dataset, DataSpec, Loader
from diabolo.data.levels import entropy_floor
from diabolo.engine import own_randomness, pick_device
from diabolo.errors import DataError, UsageError
from diabolo.images_metrics import WINDOW, ssim
from diabolo.metrics import (
    Evidence,
    blocked_log_mean_exp,
    decoded_rows,
    examples_at_a_time,
    float64,
    importance_log_weights,
    keyed_inference,
    log_p_variance,
    mean_squared_error,
)
from diabolo.models.autoencoder import Autoencoder
from diabolo.models.distributions import keyed_sample
from diabolo.models.grids import vectors
from diabolo.models.objectives import log_mean_exp
from diabolo.options import k_or_se
from diabolo.progress import Progress
from diabolo.proposals import Fitted, fit_all
from diabolo.seeds import fold, mix

logger = logging.getLogger("diabolo")

#: Images a pass encodes at a time.
BATCH = 500
#: Values of x that they may hold together: large images go in smaller batches, for the sake of memory.
BATCH_VALUES = 2**19
#: Training images that probes are fitted to, at most, stratified: the nearest of them is looked for among all, pair by pair.
PROBED = 60_000
#: The curve of log p against K, unless a setting says otherwise: as many of these, on as many images but never fewer than
#: CURVE_LEAST, as need no more than CURVE_VALUES decoded values. That is K = 5,000 on 100 images of 28x28.
CURVE_K = (1, 10, 100, 1000, 5000)
CURVE_LEAST = 20
CURVE_VALUES = 400_000_000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is measured. `k` draws for log p(x) (0: it is not estimated) on `images` stratified images (0, or more than
    there are: all), or with `se` as many draws for each image as make its Monte-Carlo standard error `se` nats, from a proposal
    fitted to it (None: `k` from q; see diabolo.adaptive, diabolo.proposals). `elbo_samples` draws for the bound on every image,
    the curve of log p against `curve_k` on `curve_images` of them (None: K up to 5,000, less for large images, as
    `CURVE_VALUES` allows); `probes` fits classifiers; the sigma of a calibrated Gaussian is set on `calibration` training
    images (0, or more than there are: all)."""

    split: str = "test"
    k: int = 1000
    images: int = 500
    elbo_samples: int = 10
    curve_k: tuple[int, ...] | None = None
    curve_images: int = 100
    probes: bool = True
    calibration: int = 10_000
    seed: int = 0
    se: float | None = None


FULL = Settings(k=5000, images=0)
#: Every part of an evaluation that takes no time of its own: does it run?
SMOKE = Settings(k=10, images=10, elbo_samples=2, curve_k=(1, 10), curve_images=5, probes=False)


def evaluate(
    run: runs.Run | str | Path,
    settings: Settings | None = None,
    *,
    data: Dataset | None = None,
    access: Access | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a run and write evaluation.json and per_image.safetensors into it, of a pretrained model where `Run.place` says.

    Returns {metric: {value, se, n, unit, split, ...}} with `about`; elbo is the bound itself (negative for
    discrete data), nats per example; a metric that does not apply is absent.

    Raises:
        DataError: if run, weights or data are missing or do not match.
        UsageError: for settings that cannot be honoured.
    """
    run = run if isinstance(run, runs.Run) else runs.Run(run)
    settings, progress = settings or Settings(), progress or Progress()
    _check(settings)
    dataset = data if data is not None else data_module.load(run.config.data.name, run.config.data.params, access)
    run.check_data(dataset)
    how_far = _how_far(run)
    if how_far and run.status["state"] == "stopped":  # as it was asked to
        progress.say(f"{run.path} was {how_far}")
    elif how_far:
        logger.warning("%s is %s", run.path, how_far)
    dataset.split(settings.split)
    where = pick_device(device)
    with own_randomness(where), torch.no_grad():
        evidence, seconds = _finite(run, lambda model: gather(model.to(where), dataset, settings, where, progress))
        began = time.monotonic()
        measured = {name: registry.get("metric", name)(evidence) for name in registry.names("metric")}
        seconds["metrics"] = round(time.monotonic() - began, 2)
    result = {
        "about": _about(run, dataset, settings, seconds, evidence),
        **{name: m for name, m in measured.items() if m is not None},
    }
    runs.write_tensors(run.place("per_image.safetensors"), _per_image(evidence))
    runs.write_json(run.place("evaluation.json"), result)
    return result


def _how_far(run: runs.Run) -> str | None:
    """Which weights are measured, where they are not those of a finished run."""
    status = run.status
    if status["state"] == "finished":
        return None
    if status["state"] == "stopped":
        return f"stopped ({status['reason']}) at epoch {status['epoch']}: its weights {status['weights']} are measured"
    return f"{status['state']} at epoch {status.get('epoch')}: its weights so far are measured"


def _finite(
    run: runs.Run, measure: Callable[[Autoencoder], tuple[Evidence, dict[str, float]]]
) -> tuple[Evidence, dict[str, float]]:
    """Measure the run's model; numbers that are not finite are refused rather than averaged.

    Raises:
        DataError: if the model's parameters or its numbers are not finite.
    """
    why = f"Training ended as {run.status['state']!r}; its weights give values that are not finite."
    remedy = "Train again with scaled data, a lower train.lr, or train.clip=100."
    model = run.model()
    if not all(p.isfinite().all() for p in model.state_dict().values()):
        raise DataError(f"{run.path} cannot be measured", why, remedy)
    try:
        evidence, seconds = measure(model)
    except ValueError as error:
        if not str(error).startswith("Expected parameter"):  # torch.distributions on parameters outside their range
            raise
        raise DataError(f"{run.path} cannot be measured", f"{why} {str(error).splitlines()[0]}", remedy) from error
    numbers = (
        evidence.elbo,
        evidence.kl,
        evidence.mse_sample,
        evidence.distortion,
        evidence.mse_mean,
        evidence.log_p,
    )
    if not all(t.isfinite().all() for t in numbers if t is not None):
        raise DataError(f"{run.path} cannot be measured", why, remedy)
    return evidence, seconds


def evaluation_source_hash() -> str:
    """SHA-256 of the source that decides what an evaluation gives."""
    return runs.source_hash(
        "models",
        "data",
        "adaptive.py",
        "proposals.py",
        "metrics.py",
        "code_length.py",
        "images_metrics.py",
        "evaluation.py",
        "seeds.py",
    )


def _check(settings: Settings) -> None:
    for name, least in (("k", 0), ("images", 0), ("elbo_samples", 2), ("curve_images", 0), ("calibration", 0)):
        if getattr(settings, name) < least:
            raise UsageError(f"{name}={getattr(settings, name)} is refused", f"It must be at least {least}.")
    if any(k < 1 for k in settings.curve_k or ()):
        raise UsageError(f"curve_k={settings.curve_k} is refused", "Each K must be at least 1.")
    if settings.se is not None:
        k_or_se(None if settings.k == Settings.k else settings.k, settings.se)
    if settings.images == 1 or settings.curve_images == 1:
        raise UsageError("one image has no standard error", remedy="Take at least two.")


def gather(
    model: Autoencoder, dataset: Dataset, settings: Settings, device: torch.device, progress: Progress
) -> tuple[Evidence, dict[str, float]]:
    """Run the model over a split: the evidence and the seconds that each stage took."""
    loader, clock = Loader(dataset, settings.split, device), _Clock()
    if len(loader) < 2:
        raise UsageError(
            f"the {settings.split} split has {len(loader)} example",
            "One example has no standard error.",
            "Use more data.",
        )
    whole = _whole_pass(model, loader, dataset.spec, settings, progress)
    clock.lap("pass")
    spread = _calibration(model, dataset, settings, device, progress) if "dequantized_error" in whole else {}
    if spread:
        clock.lap("calibration")
    labels = dataset.split(settings.split).labels
    sampled = _importance(model, loader, labels, settings, progress) if model.bounded and settings.k else {}
    clock.lap("importance")
    probes = _probe_inputs(model, dataset, device) if settings.probes and labels is not None else {}
    clock.lap("probes")
    unit = "nats/image" if len(dataset.spec.shape) == 3 else "nats/example"
    evidence = Evidence(
        split=settings.split,
        unit=unit,
        samples=settings.elbo_samples,
        labels=labels,
        dimensions=dataset.spec.dimensions,
        pixels=_levels(dataset.spec),
        density=_density(model),
        event=tuple(model.decoder.in_shape),  # type: ignore[arg-type]
        **{**whole, **spread, **sampled, **probes},
    )
    return evidence, clock.laps


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self.last = round(now - self.last, 2), now


def _batch(loader: Loader) -> int:
    return max(1, min(BATCH, BATCH_VALUES // loader.values[0].numel()))


def _levels(spec: DataSpec) -> bool:
    """Whether the data are images of levels k/255."""
    return spec.values == "grey" and len(spec.shape) == 3


def _density(model: Autoencoder) -> bool:
    return model.likelihood.normalised and not model.likelihood.discrete


def _whole_pass(
    model: Autoencoder, loader: Loader, spec: DataSpec, settings: Settings, progress: Progress
) -> dict[str, Any]:
    progress.start(f"{'ELBO' if model.bounded else 'distortion'} on {settings.split}", len(loader))
    seed, columns, done = fold(settings.seed, "elbo"), dict[str, Tensor](), 0
    measure = _bounded if model.bounded else _unbounded
    for batch in loader.ordered(examples_at_a_time(model, loader.values.shape[1], _batch(loader))):
        index, x = batch.index.tolist(), batch.x
        row = measure(model, x, index, settings.elbo_samples, seed)
        at_mean = row.pop("at_mean")
        if _levels(spec) and min(spec.shape[1:]) >= WINDOW:
            row["ssim"] = ssim(x.cpu(), at_mean.cpu())
        if model.bounded and spec.values == "grey" and _density(model):
            row |= code_length(model, x, index, settings.elbo_samples, seed)
        elif model.bounded and model.likelihood.discrete:
            row["bits"] = bits(-row["elbo"], spec.dimensions, density=False)
        # into one column: small tensors kept between large ones that go leave memory in holes
        for name, found in row.items():
            if name not in columns:
                columns[name] = found.new_empty((len(loader), *found.shape[1:]))
            columns[name][done : done + len(x)] = found
        done += len(x)
        progress.advance(len(x))
    progress.finish()
    return columns


def _bounded(model: Autoencoder, x: Tensor, index: Sequence[int], samples: int, seed: int) -> dict[str, Tensor]:
    inference = keyed_inference(model, x, index, samples, seed)
    latent = inference.latents[0]
    at_mean = model.decode(latent.posterior.mean[None])
    log_w, kl = float64(inference.log_weight(x)), float64(latent.kl()).mean(0)  # (S, B), (B,)
    row = {
        "elbo": log_w.mean(0),
        "elbo_variance": log_w.var(0) / samples,
        "kl": kl,
        "distortion": -log_w.mean(0) - kl,
        "mse_mean": float64(mean_squared_error(at_mean, x))[0],
        "at_mean": at_mean.mean[0],
        "mse_sample": float64(mean_squared_error(inference.likelihood, x)).mean(0),
        "mean": vectors(float64(latent.posterior.mean)),
    }
    per_dimension = _kl_per_dimension(latent.posterior, latent.prior)
    return row if per_dimension is None else {**row, "kl_per_dimension": per_dimension}


def _unbounded(model: Autoencoder, x: Tensor, index: Sequence[int], samples: int, seed: int) -> dict[str, Tensor]:
    """Of a model without a bound; the code of a plain autoencoder is the same in every draw, so one is enough."""
    q, drawn = model.encode(x), model.posterior.density
    at_mean = model.decode(q.mean[None])
    decoded = model.decode(keyed_sample(q, samples if drawn else 1, [mix(seed, i) for i in index]))
    row = {
        "distortion": -float64(decoded.log_prob(x)).mean(0),
        "mse_mean": float64(mean_squared_error(at_mean, x))[0],
        "at_mean": at_mean.mean[0],
        "mean": vectors(float64(q.mean)),
    }
    return {**row, "mse_sample": float64(mean_squared_error(decoded, x)).mean(0)} if drawn else row


def _kl_per_dimension(q: Any, p: Any) -> Tensor | None:
    if not (isinstance(q, Independent) and isinstance(q.base_dist, Normal) and isinstance(p, Independent)):
        return None
    return vectors(float64(kl_divergence(q.base_dist, p.base_dist)))  # (B, d)


def _calibration(
    model: Autoencoder, dataset: Dataset, settings: Settings, device: torch.device, progress: Progress
) -> dict[str, Any]:
    """The variance that a Gaussian with one sigma should have: its error on the training split, z drawn once for an image."""
    if model.likelihood.family != "gaussian" or getattr(model.likelihood, "sigma", None) is None:
        return {}
    loader, seed, total = Loader(dataset, "train", device), fold(settings.seed, "calibration"), 0.0
    count = min(settings.calibration or len(loader), len(loader))
    chosen = stratified(dataset.train.labels, len(loader), count, fold(seed, "images"))
    progress.start("sigma on train", count)
    for batch in loader.ordered(_batch(loader), indices=chosen):
        index = batch.index.tolist()
        x = dequantized(batch.x, index, fold(seed, "dequantize"))
        error = mean_squared_error(keyed_inference(model, x, index, 1, seed).likelihood, x)
        total += float64(error).sum().item()
        progress.advance(len(index))
    progress.finish()
    return {"train_variance": total / count, "train_examples": count}


def _importance(
    model: Autoencoder, loader: Loader, labels: Tensor | None, settings: Settings, progress: Progress
) -> dict[str, Any]:
    count = min(settings.images or len(loader), len(loader))
    index = stratified(labels, len(loader), count, fold(settings.seed, "images"))
    seed, weights = fold(settings.seed, "importance"), partial(_weights, model, loader)
    more: dict[str, Any] = {}
    if settings.se is None:
        fitted, plan = None, adaptive.constant(count, settings.k)
    else:
        progress.start("proposals for log p(x)", count)
        fitted = fit_all(model, loader, index, seed, progress.advance)
        progress.finish()
        weights = partial(_weights, model, loader, fitted=fitted)
        improve = None if fitted is None else partial(fitted.improve, model, loader)
        plan = adaptive.plan(weights, index, settings.se, seed, improve)
    k = settings.k if settings.se is None else adaptive.words(settings.se)
    progress.start(f"log p(x), K = {k}", count)
    found = adaptive.estimates(weights, index, plan.k, seed, progress.advance)
    progress.finish()
    if settings.se is not None:
        more = {"adaptive": adaptive.summary(plan, found, settings.se, fitted), "log_p_k": plan.k}
        _say_shortfall(more["adaptive"], count, progress)
    curve, curve_variance = _curve(model, loader, labels, index, settings, progress)
    return {
        "index": index,
        "log_p": found.log_p,
        "log_p_variance": found.variance,
        "ess": found.ess,
        "k": k,
        **more,
        "curve": curve,
        "curve_variance": curve_variance,
    }


def _say_shortfall(summary: dict[str, Any], images: int, progress: Progress) -> None:
    if summary["within"] < images:
        progress.say(
            f"log p(x): {images - summary['within']:,} of {images:,} images miss the standard error of {summary['se_asked']:g} "
            f"nats or its bias; {summary['at_ceiling']:,} of all stopped at the ceiling, K = {summary['ceiling']:,}"
        )


def _curve(
    model: Autoencoder,
    loader: Loader,
    labels: Tensor | None,
    index: Tensor,
    settings: Settings,
    progress: Progress,
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    ks, images = curve_plan(settings, math.prod(loader.values.shape[1:]))
    count = min(images, len(index))
    if not count or not ks:
        return {}, {}
    inside = stratified(
        None if labels is None else labels[index], len(index), count, fold(settings.seed, "curve images")
    )
    progress.start(f"log p(x) against K up to {max(ks)}", count)
    bounds: dict[int, list[Tensor]] = {k: [] for k in ks}
    variances: dict[int, list[Tensor]] = {k: [] for k in ks}
    for log_w in _weights(model, loader, index[inside], max(ks), fold(settings.seed, "curve")):
        for k in ks:
            bounds[k].append(blocked_log_mean_exp(log_w, k))
            variances[k].append(_blocked_variance(log_w, k))
        progress.advance(log_w.shape[1])
    progress.finish()
    return {k: torch.cat(v) for k, v in bounds.items()}, {k: torch.cat(v) for k, v in variances.items()}


def curve_plan(settings: Settings, dimensions: int) -> tuple[tuple[int, ...], int]:
    """The numbers of draws on the curve and how many images it takes at most, for examples of `dimensions` values."""
    if settings.curve_k is not None or not settings.curve_images:
        return settings.curve_k or (), settings.curve_images
    affordable = CURVE_VALUES // dimensions  # draws of all images together
    least = min(CURVE_LEAST, settings.curve_images)
    ks = tuple(k for k in CURVE_K if k * least <= affordable) or CURVE_K[:1]
    return ks, max(2, min(settings.curve_images, affordable // max(ks)))


def _about_curve(settings: Settings, evidence: Evidence) -> dict[str, Any] | None:
    """The largest K of the curve, on how many images, and whether large images made it shorter."""
    if not evidence.curve or evidence.index is None:
        return None
    largest, images = max(evidence.curve), next(iter(evidence.curve.values())).numel()
    fewer = images < min(settings.curve_images, evidence.index.numel())
    shortened = settings.curve_k is None and (largest < max(CURVE_K) or fewer)
    return {"largest_k": largest, "images": images, "shortened": shortened}


def _blocked_variance(log_w: Tensor, k: int) -> Tensor:
    """Variance of the mean over blocks: from the blocks where there are several, else by the delta method."""
    blocks = log_w.shape[0] // k
    if blocks == 1:
        return log_p_variance(log_w)
    return log_mean_exp(log_w[: blocks * k].unflatten(0, (-1, k)), 1).var(0) / blocks


def _weights(
    model: Autoencoder, loader: Loader, index: Tensor, k: int, seed: int, fitted: Fitted | None = None
) -> Iterator[Tensor]:
    together = max(1, min(BATCH, decoded_rows(model, loader.values) // k))  # images in a full chunk
    for batch in loader.ordered(together, indices=index):
        proposal = None if fitted is None else fitted.of(batch.index)
        yield importance_log_weights(model, batch.x, batch.index.tolist(), k, seed, proposal=proposal)


def _probe_inputs(model: Autoencoder, dataset: Dataset, device: torch.device) -> dict[str, Any]:
    labels = dataset.train.labels
    if labels is None:
        return {}
    loader = Loader(dataset, "train", device)
    chosen = stratified(labels, len(loader), min(PROBED, len(loader)), fold(0, "probes"))
    means = [vectors(float64(model.encode(batch.x).mean)) for batch in loader.ordered(2 * BATCH, indices=chosen)]
    return {"train_mean": torch.cat(means), "train_labels": labels[chosen]}


def stratified(labels: Tensor | None, total: int, count: int, seed: int) -> Tensor:
    """`count` of `total` indices in order, the classes as equal in number as they can be, chosen by `seed`.

    Raises:
        UsageError: if there are fewer than `count`.
    """
    if count > total:
        raise UsageError(f"{count} images were asked for, there are {total}")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    if labels is None:
        return order[:count].sort().values
    rank = torch.empty(total, dtype=torch.long)  # of an image within its class, in the shuffled order
    for c in labels.unique():
        members = order[labels[order] == c]
        rank[members] = torch.arange(len(members))
    return order[rank[order].argsort(stable=True)][:count].sort().values


def _per_image(e: Evidence) -> dict[str, Tensor]:
    columns = {
        name: getattr(e, name)
        for name in ("elbo", "kl", "distortion", "mse_mean", "mse_sample", "mean", "labels", "log_p", "ess", "ssim")
    }
    columns["bits_per_dim"] = e.bits
    return {
        **{name: t for name, t in columns.items() if t is not None},
        **({} if e.index is None else {"log_p_index": e.index}),
        **({} if e.log_p_k is None else {"log_p_k": e.log_p_k}),
    }


def _about(
    run: runs.Run, dataset: Dataset, settings: Settings, seconds: dict[str, float], evidence: Evidence
) -> dict[str, Any]:
    likelihood = run.config.model.likelihood.name
    kind: Any = registry.get("likelihood", likelihood)
    split = dataset.split(settings.split)
    floored = not kind.normalised and dataset.spec.values == "grey" and split.values.dtype == torch.uint8
    return {
        "schema": runs.SCHEMA,
        **asdict(settings),
        **({} if settings.se is None else {"k": adaptive.words(settings.se)}),
        "curve": _about_curve(settings, evidence),
        "n": len(split),
        "data": dataset.spec.name,
        "data_hash": dataset.hash,
        "draw_hash": Loader(dataset, settings.split).draw_hash,
        "values": dataset.spec.values,
        "likelihood": likelihood,
        "family": kind.family,
        "normalised": kind.normalised,
        "sigma": getattr(run.model().likelihood, "sigma", None),
        "bound": "elbo" if evidence.elbo is not None else "none",
        "entropy_floor": entropy_floor(split.values).mean().item() if floored else None,
        "seconds": seconds,
        "training": run.status["state"],
        "how_far": _how_far(run),
        "smoke": run.config.train.smoke,
        "weights_sha256": runs.sha256(run.path / "weights.safetensors"),
        "source_hash": evaluation_source_hash(),
    }
