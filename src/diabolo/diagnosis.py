"""What is wrong with a run, measured: each check is one function that reads an `Examination` and returns what it found.

Its docstring says where its limit lies and how far healthy runs stay from it: "healthy" are Models 1 to 3 of the MNIST chapter
in both conventions and the presets linear-vae and vae, at their full length.
It finds something (`Finding`), finds the run sound (`Sound`),
or cannot be done (`Unchecked`); nothing is passed over in silence.
"""

from __future__ import annotations

import math
from typing import Any

from diabolo.data import Access, Dataset
from diabolo.engine import own_randomness, pick_device
from diabolo.examination import Examination, NotFinite, Unreachable
from diabolo.findings import CHECKS, Check, Diagnosis, Finding, Outcome, Remark, Sound, Unchecked, check
from diabolo.listings import plain
from diabolo.models.grids import shape_of
from diabolo.recorded import shown_k
from diabolo.runs import Run

#: Limits; each check's docstring says why they lie there.
COLLAPSED_RATE = math.log(2)
DEAD_LAYER, DEAD_MODEL = 0.97, 0.8
USED_SHARE, IDLE = 0.2, 16
GAP_SHARE, SIGMAS = 1 / 3, 5
FALL_SHARE = 0.05
WORSE_SHARE = 0.05


def diagnose(
    run: Run, *, data: Dataset | None = None, access: Access | None = None, device: str = "cpu", imports: str = ""
) -> Diagnosis:
    """Check a run in every way that its evidence allows; nothing is written.

    Arguments:
        data: the run's examples, where they were in memory (`diabolo.data.from_tensor`).
        imports: what commands in remedies need besides, such as " --import laplace".

    Raises:
        DataError: if the run's configuration cannot be read.
    """
    device_ = pick_device(device)
    examination = Examination(run, data=data, access=access, device=device_, imports=imports)
    with own_randomness(device_):
        return Diagnosis(
            str(run.path), tuple(_outcome(name, function, examination) for name, function in CHECKS.items())
        )


def _outcome(name: str, function: Check, e: Examination) -> Outcome:
    try:
        return function(e)
    except Unreachable as error:
        return Unchecked(name, str(error))


# ------------------------------------------------------------------------------------------------ did it train?
@check("unfinished")
def unfinished(e: Examination) -> Outcome:
    """A run that did not come to its end. No limit: the status says so. One that diverged is the next check's."""
    status, epochs = e.status, e.config.train.epochs
    state, measured = status["state"], f"status {status['state']}, epoch {status.get('epoch', 0)} of {epochs}"
    if state == "diverged":
        return Unchecked("unfinished", "not applicable: training diverged")
    if state == "finished":
        return Sound("unfinished", measured, "a finding unless the run came to its end")
    return Finding(
        "unfinished",
        f"{measured}, step {status.get('step', 0):,}",
        "Its weights are those of the last save." + (" It may be training now." if state == "running" else ""),
        f"Go on with: diabolo train --resume {e.run.path}{e.imports}",
        "severe",
    )


@check("divergence")
def divergence(e: Examination) -> Outcome:
    """Training ended as diverged, gives no finite numbers, or is worse than it began or than a model that ignores x.

    Limit: a training loss above the initial one, or above the constant model's by more than 5 % of what lies between the
    two, without falling any more. Healthy runs are below the constant model by 29 % (Model 2) to 53 % (vae) of that distance,
    a collapsed one sits on it to 0.03 %.
    """
    why = "Steps were too long: the weights were thrown where no gradient leads back."
    if e.status["state"] == "diverged":
        return Finding("divergence", _reason(e), why, _smaller_steps(e), "severe")
    try:
        loss, began = e.train.loss.mean().item(), e.start.loss.mean().item()
    except NotFinite as error:
        return Finding("divergence", f"{error} at lr = {e.config.train.lr:g}", why, _smaller_steps(e), "severe")
    measured = f"training loss {loss:.2f} nats/example, {began:.2f} before training"
    if loss > began:
        return Finding("divergence", measured, why, _smaller_steps(e), "severe")
    measured += f", {e.constant:.2f} for the best model that ignores x ({e.train.label()})"
    if loss <= e.constant + WORSE_SHARE * abs(began - e.constant):
        return Sound(
            "divergence", measured, f"a finding above the first, or {WORSE_SHARE:.0%} of the way above the second"
        )
    if len(e.epochs("train")) < 3:
        return Unchecked(
            "divergence", f"{measured}: a run that has just begun, or one that went astray; train 3 epochs"
        )
    if _falling(e):
        return Unchecked("divergence", f"{measured}, but still falling: see trained too short")
    return Finding("divergence", f"{measured}, lr = {e.config.train.lr:g}", why, _smaller_steps(e), "severe")


def _reason(e: Examination) -> str:
    reason = str(e.status.get("reason", "")).partition("\n")[0] or "its state is diverged"
    return f"{reason}; lr = {e.config.train.lr:g}, {e.status.get('skipped', 0)} steps skipped"


def _smaller_steps(e: Examination) -> str:
    lr = e.config.train.lr
    return _again(e, f"train.lr={min(0.001, lr / 10):g}", *(() if e.config.train.clip else ("train.clip=100",)))


@check("skipped steps")
def skipped_steps(e: Examination) -> Outcome:
    """Steps that were not taken because loss or gradient was not finite. Limit: none; healthy runs skip none at all, as
    float32 holds every number of a training on scaled data."""
    skipped, steps = int(e.status.get("skipped", 0)), int(e.status.get("step", 0))
    if not skipped:
        return Sound("skipped steps", f"0 of {steps:,} steps", "a finding above 0")
    return Finding(
        "skipped steps",
        f"{skipped:,} of {steps:,} steps ({skipped / steps:.1%}) were not finite and were skipped",
        "Their batches taught nothing, and the steps next to them were close to overflow.",
        _smaller_steps(e),
        "moderate",
    )


@check("data range")
def data_range(e: Examination) -> Outcome:
    """Data beyond what the likelihood's mean can reach, found by driving the head to both ends: binary cross-entropy, whose
    mean ends at 0 and 1, on data in [-1, 1] for instance. Limit: none but half a grey level for rounding; healthy runs have no
    value outside."""
    r = e.range
    low, high = r.reach
    ends = "any value" if math.isinf(low) and math.isinf(high) else f"[{low:g}, {high:g}]"
    measured = f"training values lie in [{r.low:g}, {r.high:g}], the likelihood's mean reaches {ends}"
    if not r.outside:
        return Sound("data range", f"{measured}; none of {r.n:,} values is outside", "a finding above 0")
    name = e.config.model.likelihood.name
    return Finding(
        "data range",
        f"{measured}: {r.outside:.1%} of {r.n:,} values are outside [{low:g}, {high:g}]",
        f"No decoder can give these values, and {name} gives them log-probabilities that mean nothing, often without a bound.",
        f"Scale the data, x -> {_scaling(r.low, r.high, low, high)}, or take a likelihood for real numbers: "
        + _again(e, "model.likelihood=gaussian"),
        "severe",
    )


def _scaling(low: float, high: float, least: float, most: float) -> str:
    """The affine map of the data's range to the reachable one, where that is bounded."""
    if not math.isfinite(most - least):
        return "a reachable range"
    unit = f"(x - {low:g}) / {high - low:g}" if low >= 0 else f"(x + {-low:g}) / {high - low:g}"
    return unit if (least, most) == (0, 1) else f"{least:g} + {most - least:g} {unit}"


# ------------------------------------------------------------------------------------------------ the code
@check("posterior collapse")
def posterior_collapse(e: Examination) -> Outcome:
    """z says nothing about x. Limit: a rate below log 2 = 0.69 nats (one bit, which bounds the mutual information of x and z
    from above, cannot tell two halves of the data apart), or no active unit. Healthy rates are 3.4 nats (linear-vae, 3
    dimensions) to 18.8 (Model 1, binarized), with 3 active units or more."""
    rate = _rate(e, "posterior collapse")
    if isinstance(rate, Unchecked):
        return rate
    value, active, of, source = rate
    beta = float(e.config.objective.params.get("beta", 1.0))
    measured = f"rate {value:.4g} nats/example, {active} of {of} active units, effective beta {beta:g} ({source})"
    if value >= COLLAPSED_RATE and active:
        return Sound("posterior collapse", measured, "a finding below 0.69 nats (one bit) or without an active unit")
    why = (
        "z says less than one bit about x: every x is decoded to nearly the same, and samples are the mean of the data."
    )
    return Finding("posterior collapse", measured, why, _against_collapse(e, beta), "severe")


def _rate(e: Examination, name: str) -> tuple[float, int, int, str] | Unchecked:
    """Rate, active units, latent dimensions and where these come from: evaluation.json, or else measured now."""
    try:
        found = e.evaluation
        active, about = found["active_units"], found["about"]
        source = f"evaluation.json, {about['n']:,} {about['split']} examples"
        return float(found["kl"]["value"]), int(active["value"]), int(active["of"]), source
    except (Unreachable, KeyError):
        h = e.held
    if h.rate is None:
        return Unchecked(name, "not applicable: a plain autoencoder has no rate")
    return h.rate.mean().item(), h.active, h.mean.shape[1], f"measured now on {h.label()}"


def _against_collapse(e: Examination, beta: float) -> str:
    if beta > 1:
        return _again(e, "objective.beta=1")
    if e.config.model.likelihood.params.get("scale") is not None:
        return _again(e, "model.likelihood.scale=none") + " (a fixed scale that is too large hides every detail)"
    if "warmup_steps" in e.config.objective.params:
        steps = e.status.get("step", 0) // 2
        return _again(e, f"objective.warmup_steps={max(steps, 1)}")
    return _smaller_steps(e)


@check("dead units")
def dead_units(e: Examination) -> Outcome:
    """Rectified units that are 0 for every example looked at pass no gradient and never come back.

    Limits: 97 % of a layer's units, or 80 % of all. Many healthy runs have dead units: Model 1 41 % of a layer and 20 % of all,
    vae (lr = 0.003, 7 seeds) 80 to 94 % of a layer and 61 to 67 % of all. So a layer has half as many live units at the limit
    as the worst healthy one.
    """
    layers = e.train.layers
    if not layers:
        return Unchecked("dead units", "not applicable: the model has no ReLU")
    worst = max(layers, key=lambda layer: layer.dead / layer.units)
    dead, units = sum(layer.dead for layer in layers), sum(layer.units for layer in layers)
    measured = (
        f"{worst.dead} of {worst.units} units ({worst.dead / worst.units:.0%}) of {worst.name} are 0 on all of "
        f"{e.train.label()}; {dead / units:.0%} of all {units:,} hidden units"
    )
    if worst.dead < DEAD_LAYER * worst.units and dead < DEAD_MODEL * units:
        return Sound(
            "dead units", measured, f"a finding from {DEAD_LAYER:.0%} of a layer or {DEAD_MODEL:.0%} of all on"
        )
    part = worst.name.partition(".")[0]
    network = {"encoder": e.config.model.encoder, "decoder": e.config.model.decoder}.get(part)
    override = (f"model.{part}.activation=leaky_relu",) if network and "activation" in network.params else ()
    slower = () if e.config.train.lr <= 0.001 else ("train.lr=0.001",)
    why = "A dead unit passes no gradient: the layer is narrower than it looks, and what it lost does not come back."
    return Finding("dead units", measured, why, _again(e, *override, *slower), "severe")


@check("latent size")
def latent_size(e: Examination) -> Outcome:
    """Far more latent dimensions than are used.

    Limit: fewer than a fifth carry 5 % of what the strongest one does, and 16 or more are idle: a few cost nothing. Active units
    alone would miss it: idle dimensions vary by more than 0.01 long after the others are found (linear-vae with 64 for 3 axes
    after 600 steps: 41 active). Healthy runs use 37 % (vae, 3 of 8) to all of their dimensions, Model 1 half.
    """
    held = e.held
    if held.rate is None:
        return Unchecked("latent size", "not applicable: a plain autoencoder has no rate")
    used, of = held.carrying, held.mean.shape[1]
    measured = (
        f"{used} of {of} latent dimensions ({used / of:.1%}) carry 5 % or more of what the strongest does, "
        f"{held.active} are active (measured now on {held.label()})"
    )
    if not held.active:
        return Unchecked("latent size", "no dimension is active: see posterior collapse")
    if used >= USED_SHARE * of or of - used < IDLE:
        return Sound("latent size", measured, f"a finding below {USED_SHARE:.0%}, with {IDLE} or more idle")
    why = f"The other {of - used} carry noise that the decoder has to ignore; they cost parameters and slow training."
    return Finding("latent size", measured, why, _smaller_latent(e, used), "moderate")


def _smaller_latent(e: Examination, used: int) -> str:
    """Half as many dimensions again as are used, in steps of 4; of a grid, as few channels as hold them."""
    channels, *sides = shape_of(e.config.model.latent)
    if not sides:
        return _again(e, f"model.latent={4 * math.ceil(1.5 * used / 4)}")
    enough = math.ceil(1.5 * used / math.prod(sides))
    if enough < channels:
        return _again(e, f"model.latent={plain((enough, *sides))}")
    return "Train again with a smaller grid: one number more in the widths of both networks halves its sides."


@check("idle channels")
def idle_channels(e: Examination) -> Outcome:
    """A channel of a grid of codes that is not active at any place: it fell asleep before it was of use, and wakes late or never.

    Limit: none; a channel costs its rate from the first step on, but lowers the distortion only once the decoder knows it, so
    that all of it is given up together. Seen with cifar10-sharp on 5,000 images after 2,394 steps (seed 0; docs/data.md): one
    channel of 8 asleep, 28.79 dB; with the rate's weight rising over 800 steps all are awake, 29.63 dB. Healthy: none; the
    preset at its full length has all 512 dimensions active.
    """
    channels, *sides = shape_of(e.config.model.latent)
    if not sides:
        return Unchecked("idle channels", "not applicable: the latent is a vector")
    held = e.held
    if held.rate is None:
        return Unchecked("idle channels", "not applicable: a plain autoencoder has no rate")
    if not held.active:
        return Unchecked("idle channels", "no dimension is active: see posterior collapse")
    asleep = (~held.varying.unflatten(0, (channels, -1)).any(1)).nonzero().flatten().tolist()
    measured = (
        f"{len(asleep)} of {channels} channels are not active at any of {math.prod(sides)} places "
        f"(measured now on {held.label()})"
    )
    if not asleep:
        return Sound("idle channels", measured, "a finding above 0")
    named = ", ".join(map(str, asleep))
    why = "A channel is of use only when the decoder knows it, and its rate was charged before."
    return Finding("idle channels", f"{measured}: {named}", why, _against_sleep(e, channels - len(asleep)), "moderate")


def _against_sleep(e: Examination, awake: int) -> str:
    """Charge for the rate later; where that was done, or cannot be, do without the channels that are idle."""
    if e.config.objective.params.get("warmup_steps") == 0:
        return _again(e, f"objective.warmup_steps={max(e.status.get('step', 0) // 3, 1)}")
    return _again(e, f"model.latent={plain((awake, *shape_of(e.config.model.latent)[1:]))}")


# ------------------------------------------------------------------------------------------------ too much, too little
@check("overfitting")
def overfitting(e: Examination) -> Outcome:
    """What was learned does not carry over to examples that were not trained on.

    Limit: a gap between held-out and training loss above 5 standard errors and above a third of what the model gained over the
    best constant one. Healthy: 1 to 3 % (MNIST, linear-vae), 14 to 23 % (vae on 1,300 digits, 7 seeds). Model 1 on 300 images:
    47 % after 700 steps, and more later.
    """
    t, h = e.train, e.held
    gap = (h.loss.mean() - t.loss.mean()).item()
    se = math.sqrt(t.loss.var().item() / t.n + h.loss.var().item() / h.n)
    gain = e.constant - t.loss.mean().item()
    if gain <= 0:
        return Unchecked("overfitting", "the model is no better than a constant one: there is nothing to carry over")
    measured = (
        f"loss {h.loss.mean():.2f} on {h.label()}, {t.loss.mean():.2f} on {t.label()}: gap {gap:.2f} +- {se:.2f} "
        f"nats/example, {gap / gain:.0%} of the {gain:.1f} nats gained over a constant model"
    )
    if gap <= SIGMAS * se or gap <= GAP_SHARE * gain:
        return Sound("overfitting", measured, f"a finding above 5 standard errors and {GAP_SHARE:.0%}")
    seen = f"It was trained on {len(e.dataset.train):,} examples and knows them by heart; others are scored far worse."
    return Finding("overfitting", measured, seen, _against_overfitting(e), "severe")


def _against_overfitting(e: Examination) -> str:
    kept = () if e.config.train.keep == "best" else ("train.keep=best", "train.curve=validation")
    if kept and e.dataset.validation is not None:
        return f"More training examples; with these, keep the best epoch: {_again(e, *kept)}"
    networks = {"encoder": e.config.model.encoder.params, "decoder": e.config.model.decoder.params}
    smaller = [
        f"model.{part}.{key}={plain(_quarter(params[key]))}"
        for part, params in networks.items()
        for key in ("width", "widths")
        if key in params
    ]
    return f"More training examples; with these, a smaller model: {_again(e, *smaller)}"


def _quarter(width: int | tuple[int, ...]) -> int | tuple[int, ...]:
    return max(1, width // 4) if isinstance(width, int) else tuple(max(1, each // 4) for each in width)


@check("trained too short")
def too_short(e: Examination) -> Outcome:
    """The loss still falls at the end, where it is the lowest of all.

    Limit: along a line through the last tenth of the epochs, at least three, a fall of more than 5 % of what the model gained
    over the best constant one (or, where it is hardly better, of a twentieth of the way from the initial loss to that).
    Healthy: 1.1 to 1.7 % (MNIST, 10 epochs), 0.1 % (linear-vae), noise of 2 % that ends above the lowest (vae). iwae after 3 of
    its 10 epochs: 25 %.
    """
    rows = e.epochs("validation", "test", "train")
    if len(rows) < 3:
        return Unchecked("trained too short", f"a trend needs three epochs, there are {len(rows)}")
    slope, count, loss = *_trend(rows), float(rows[-1]["loss"])
    scale = max(e.constant - loss, WORSE_SHARE * abs(e.start.loss.mean().item() - e.constant))
    fall = -slope * (count - 1)
    measured = (
        f"{rows[-1]['split']} loss {slope:+.3f} nats/example an epoch over the last {count}: "
        f"a {'fall' if fall >= 0 else 'rise'} of {abs(fall) / scale:.1%} of the {scale:.1f} nats gained"
    )
    if fall <= FALL_SHARE * scale or loss > min(float(row["loss"]) for row in rows):
        return Sound(
            "trained too short", measured, f"a finding above {FALL_SHARE:.0%} where the last loss is the lowest"
        )
    why = "The model was still learning when training ended: its numbers say little about what it can do."
    return Finding(
        "trained too short", measured, why, _again(e, f"train.epochs={3 * e.config.train.epochs}"), "moderate"
    )


def _trend(rows: list[dict[str, Any]]) -> tuple[float, int]:
    """The least-squares slope of the loss, nats per epoch, over the last tenth of the epochs, and how many these are."""
    losses = [float(row["loss"]) for row in rows[-max(3, len(rows) // 10) :]]
    middle, mean = (len(losses) - 1) / 2, sum(losses) / len(losses)
    above = sum((i - middle) * (loss - mean) for i, loss in enumerate(losses))
    return above / sum((i - middle) ** 2 for i in range(len(losses))), len(losses)


def _falling(e: Examination) -> bool:
    """Whether the training loss is still on its way from the initial to the constant model's: too short then, not diverged."""
    slope, count = _trend(e.epochs("train"))
    return -slope * (count - 1) > FALL_SHARE * abs(e.start.loss.mean().item() - e.constant)


# ------------------------------------------------------------------------------------------------ remarks
@check("best epoch")
def best_epoch(e: Examination) -> Outcome:
    """Where the validation loss was lowest; a remark if that was long before the end and it has risen since."""
    rows = e.epochs("validation")
    if not rows:
        why = "(train.curve)" if e.epochs("train") else "before training ended"
        return Unchecked("best epoch", f"no validation loss was logged {why}")
    best = min(rows, key=lambda row: float(row["loss"]))
    rise = rows[-1]["loss"] - best["loss"]
    kept = "its weights are kept" if e.config.train.keep == "best" else "the last weights are kept (train.keep=last)"
    measured = f"epoch {best['epoch']} of {rows[-1]['epoch']}, {rise:.2f} nats/example below the last; {kept}"
    if best["epoch"] > rows[-1]["epoch"] / 2:
        return Sound("best epoch", measured, "a remark in the first half")
    return Remark("best epoch", f"the validation loss was lowest early: {measured}")


@check("importance sampling")
def importance_sampling(e: Examination) -> Outcome:
    """The effective sample size of log p(x). A remark below 10 at the tenth percentile, where a few draws carry the weight."""
    log_p = e.evaluation.get("log_p")
    if log_p is None:
        return Unchecked("importance sampling", "the evaluation holds no log p(x)")
    sizes = f"tenth percentile {log_p['ess_p10']:.1f}, median {log_p['ess_median']:.1f}"
    measured = f"effective sample size of K = {shown_k(log_p['k'])}: {sizes}"
    if log_p["ess_p10"] >= 10:
        return Sound("importance sampling", measured, "a remark below 10")
    return Remark("importance sampling", f"{measured}: log p(x) is low and its mc_se an underestimate on these images")


def _again(e: Examination, *overrides: str) -> str:
    """The command that trains anew with overrides; in words where the examples were in memory."""
    if e.config.data.name == "tensor":
        return f"train again from Python with overrides={list(overrides)}"
    return " ".join(("diabolo train", f"{e.run.path / 'config.json'}", *overrides)) + e.imports
