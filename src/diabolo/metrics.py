"""Metrics: pure functions of tensors. A metric reads the evidence that one evaluation gathered and returns its entry.

N images of a split, S draws of z for the bound, K for importance sampling, n images that are importance-sampled, d latent
dimensions. Log-probabilities are in nats per example, gathered in float64 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from diabolo.models.autoencoder import Autoencoder, Inference, Latent
from diabolo.models.distributions import keyed_sample, unchecked
from diabolo.models.grids import per_channel, per_position
from diabolo.models.objectives import Objective, log_mean_exp
from diabolo.registry import register
from diabolo.seeds import mix

if TYPE_CHECKING:
    from diabolo.data.spec import Batch

Entry = dict[str, Any]

#: A latent dimension is used if its posterior mean varies by more than this over the data (Burda et al., 2016).
ACTIVE_VARIANCE = 0.01
#: Nats above which dimensions are counted by their rate.
CARRIED = (0.01, 0.1)
#: Values of x that one chunk of decoded samples may hold. On a processor 2^20, 1,337 images of 28x28, is where a large matrix
#: product is fast and what the likelihood reads is still near; accelerators want larger pieces.
CHUNK_VALUES = {"cpu": 2**20}
_ACCELERATOR_VALUES = 2**22
#: Past every warm-up, so that curves of different epochs show the same objective.
_LAST_STEP = 2**62


# ------------------------------------------------------------------------------------------------ running a model
def keyed_inference(model: Autoencoder, x: Tensor, index: Sequence[int], samples: int, seed: int) -> Inference:
    """Run the model on x (B, *data) with draws of z that depend on (seed, index) alone, not on the batch around them."""
    q, prior = model.encode(x), model.prior(None, model.encode)
    z = keyed_sample(q, samples, [mix(seed, i) for i in index])  # (S, B, d)
    return Inference(model.decode(z), [Latent(z, q, prior)])


def mean_terms(model: Autoencoder, objective: Objective, batches: Any, seed: int) -> dict[str, float]:
    """Means of the objective's terms over `batches`, nats per example, z drawn with each example's own noise.

    The result does not depend on how the examples are cut into batches.
    """
    sums, count = summed_terms(model, objective, batches, seed)
    return {name: total / count for name, total in sums.items()}


def summed_terms(model: Autoencoder, objective: Objective, batches: Any, seed: int) -> tuple[dict[str, float], int]:
    """The same terms added up instead, and the number of examples: what several processes can put together."""
    sums: dict[str, float] = {}
    count = 0
    with torch.no_grad():
        for batch in batches:
            count += batch.x.shape[0]
            for name, value in keyed_terms(model, objective, batch, seed).items():
                sums[name] = sums.get(name, 0.0) + float64(value).sum().item()
    return sums, count


def keyed_terms(model: Autoencoder, objective: Objective, batch: Batch, seed: int) -> dict[str, Tensor]:
    """The objective's terms of a batch, past any warm-up, with noise that depends on (seed, index) alone, each (B,)."""
    x, index = batch.x, batch.index.tolist()
    own = getattr(objective, "keyed", None)  # of one that changes its input or looks at more than the record
    if own is not None:
        return dict(own(model, x, [mix(seed, i) for i in index], batch.y))
    inference = keyed_inference(model, x, index, int(getattr(objective, "samples", 1)), seed)
    return objective.terms(inference, x, _LAST_STEP)


def decoded_rows(model: Autoencoder, x: Tensor, chunk_values: int | None = None) -> int:
    """How many decoded examples of the shape of x (B, *data) one chunk holds: what is fast on x's device, or what holds
    `chunk_values` values of x; at least 1."""
    values = CHUNK_VALUES.get(x.device.type, _ACCELERATOR_VALUES) if chunk_values is None else chunk_values
    return examples_at_a_time(model, x.shape[1], values // math.prod(x.shape[1:]))


def importance_log_weights(
    model: Autoencoder,
    x: Tensor,
    index: Sequence[int],
    samples: int,
    seed: int,
    chunk_values: int | None = None,
    proposal: Distribution | None = None,
) -> Tensor:
    """log w_k = log p(x, z_k) - log q(z_k | x), (K, B) float64 on the CPU; exactly K = `samples` draws. `proposal`, batch (B,),
    takes the place of q(z | x), as a draw's origin and in the weight: E[w] stays p(x).

    x is encoded once, or not at all; all K draws of an image come from one call, then are decoded in chunks (`decoded_rows`),
    so that any chunking gives the same numbers up to rounding. The first draw is scored with the checks of the distributions
    on, as x is the same for all others; parameters that are no numbers further on give weights that are none.

    Raises:
        ValueError: for x outside the likelihood's support, or parameters outside their range.
    """
    q = model.encode(x) if proposal is None else proposal
    prior = model.prior(None, model.encode)
    z = keyed_sample(q, samples, [mix(seed, i) for i in index])  # (K, B, d)

    def log_weight(part: Tensor) -> Tensor:
        return Inference(model.decode(part), [Latent(part, q, prior)]).log_weight(x)

    parts = [log_weight(z[:1])]
    with unchecked():
        draws = max(1, decoded_rows(model, x, chunk_values) // len(x))
        parts += [log_weight(part) for part in (z[1:].split(draws) if samples > 1 else ())]
    return float64(torch.cat(parts))


def examples_at_a_time(model: Autoencoder, channels: int, most: int) -> int:
    """At most `most` examples of x (B, channels, ...), fewer where the decoder gives several numbers for each value of x, so that
    a pass takes the same memory."""
    return max(1, most * channels // model.likelihood.channels(channels))


def float64(t: Tensor) -> Tensor:
    """t in float64 on the CPU (some accelerators have no float64)."""
    return t.detach().to("cpu").double()


# ------------------------------------------------------------------------------------------------ statistics
def mean_and_se(values: Tensor) -> tuple[float, float]:
    """Mean and standard error of the mean (ddof 1) of values (N,); the error of one value is infinite, and refused.

    Raises:
        ValueError: for fewer than two values.
    """
    if values.numel() < 2:
        raise ValueError("a standard error needs at least two values")
    return values.mean().item(), values.std().item() / math.sqrt(values.numel())


def effective_sample_size(log_w: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 over dimension 0, between 1 and K: how many draws carry the estimate (Kong, 1992)."""
    return torch.exp(2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0))


def log_p_variance(log_w: Tensor) -> Tensor:
    """Monte-Carlo variance of log mean w over dimension 0, (B,), by the delta method: Var(w) / (K mean(w)^2)."""
    k = log_w.shape[0]
    relative = torch.exp(log_w - log_mean_exp(log_w))
    return relative.var(0) / k if k > 1 else torch.zeros_like(log_w[0])


def blocked_log_mean_exp(log_w: Tensor, k: int) -> Tensor:
    """The bound with k draws, averaged over the K // k disjoint blocks of log_w (K, B): (B,) nats."""
    blocks = log_w[: log_w.shape[0] // k * k].unflatten(0, (-1, k))  # (blocks, k, B)
    return log_mean_exp(blocks, 1).mean(0)


# ------------------------------------------------------------------------------------------------ the evidence
@dataclass(frozen=True)
class Evidence:
    """What an evaluation computed once. Tensors are float64 on the CPU."""

    split: str
    unit: str  # nats/image or nats/example
    distortion: Tensor  # (N,) -E_q log p(x|z); with a bound, -elbo - KL: the sampled KL serves as control variate
    mse_mean: Tensor  # (N,) at z = mu
    mean: Tensor  # (N, d) posterior means
    samples: int  # S
    elbo: Tensor | None = None  # (N,) mean over S draws of log w; None for a model without a bound, as all down to kl
    elbo_variance: Tensor | None = None  # (N,) Monte-Carlo variance of that mean
    kl: Tensor | None = None  # (N,) KL(q || p)
    mse_sample: Tensor | None = None  # (N,) mean over S draws; None where z is not drawn
    kl_per_dimension: Tensor | None = None  # (N, d), where the family factorises
    labels: Tensor | None = None  # (N,)
    train_mean: Tensor | None = None  # (M, d), with train_labels (M,): what probes are fitted to
    train_labels: Tensor | None = None
    index: Tensor | None = None  # (n,) images that were importance-sampled
    log_p: Tensor | None = None  # (n,) log mean w over K draws
    log_p_variance: Tensor | None = None  # (n,) its Monte-Carlo variance
    ess: Tensor | None = None  # (n,)
    k: int | str = 0  # the words of adaptive.words where it is chosen image by image
    adaptive: dict[str, Any] | None = None  # adaptive.summary then
    log_p_k: Tensor | None = None  # (n,) draws of each image then
    curve: dict[int, Tensor] | None = None  # K -> (m,)
    curve_variance: dict[int, Tensor] | None = None
    dimensions: int = 0  # D
    pixels: bool = False  # whether the data are images of levels in [0, 1]: what a peak of 1 means
    ssim: Tensor | None = None  # (N,) at z = mu, of images as large as its window
    density: bool = False  # whether the likelihood is a density, so that levels need dequantization
    bits: Tensor | None = None  # (N,) bits/dim, with dequantized levels where it is a density
    dequantized_error: Tensor | None = None  # (N,) mean squared error at drawn z, of a density
    dequantized_kl: Tensor | None = None  # (N,)
    train_variance: float | None = None  # of a Gaussian with one sigma: its dequantized error on the training split
    train_examples: int = 0  # that it is the mean of
    # of z: (d,), or (channels, rows, columns) of a grid, whose d values are numbered in that order
    event: tuple[int, ...] = ()

    @property
    def error_unit(self) -> str:
        return "squared error/pixel" if self.unit == "nats/image" else "squared error/value"

    def entry(self, values: Tensor, unit: str, **more: Any) -> Entry:
        """An entry of evaluation.json: the mean over images with its standard error."""
        value, se = mean_and_se(values)
        return {"value": value, "se": se, "n": values.numel(), "unit": unit, "split": self.split, **more}


def _monte_carlo_se(variances: Tensor) -> float:
    return math.sqrt(variances.sum().item()) / variances.numel()


# ------------------------------------------------------------------------------------------------ the metrics
@register("metric", "elbo")
def elbo(e: Evidence) -> Entry | None:
    """Evidence lower bound, E_q[log p(x, z) - log q(z | x)] <= log p(x), nats per example, z always drawn: the bound itself,
    to be maximised; negative for discrete data. Absent for a model without a bound."""
    if e.elbo is None or e.elbo_variance is None:
        return None
    return e.entry(e.elbo, e.unit, mc_se=_monte_carlo_se(e.elbo_variance), samples=e.samples)


@register("metric", "distortion")
def distortion(e: Evidence) -> Entry:
    """-E_q[log p(x | z)], nats per example; z is drawn, or is the code of a plain autoencoder."""
    drawn = {} if e.elbo_variance is None else {"mc_se": _monte_carlo_se(e.elbo_variance), "samples": e.samples}
    return e.entry(e.distortion, e.unit, **drawn)


@register("metric", "kl")
def kl(e: Evidence) -> Entry | None:
    """The rate KL(q(z | x) || p(z)), nats per example."""
    return None if e.kl is None else e.entry(e.kl, e.unit)


@register("metric", "kl_per_dimension")
def kl_per_dimension(e: Evidence) -> Entry | None:
    """The rate of each latent dimension, nats per example: those of a grid in the order channel, row, column of its `shape`.

    `above`: how many dimensions carry more than each of `CARRIED` nats.
    """
    if e.kl_per_dimension is None:
        return None
    values = e.kl_per_dimension.mean(0)
    return {
        "values": values.tolist(),
        "shape": list(e.event),
        "above": {f"{least:g}": int((values > least).sum()) for least in CARRIED},
        "n": e.distortion.numel(),
        "unit": e.unit,
        "split": e.split,
    }


@register("metric", "kl_per_channel")
def kl_per_channel(e: Evidence) -> Entry | None:
    """The rate of each channel of a grid of codes, summed over its positions, and of each position, `positions`, a row of the
    grid a list, summed over channels; nats per example. Absent for codes that are vectors."""
    if e.kl_per_dimension is None or len(e.event) != 3:
        return None
    values = e.kl_per_dimension.mean(0)
    return {
        "values": per_channel(values, e.event).tolist(),
        "positions": per_position(values, e.event).tolist(),
        "n": e.distortion.numel(),
        "unit": e.unit,
        "split": e.split,
    }


@register("metric", "mse_mean")
def mse_mean(e: Evidence) -> Entry:
    """Mean over pixels of (decoder mean - x)^2 at z = mu."""
    return e.entry(e.mse_mean, e.error_unit, z="mean")


@register("metric", "mse_sample")
def mse_sample(e: Evidence) -> Entry | None:
    """Mean over pixels of (decoder mean - x)^2 with z drawn from q(z | x)."""
    return None if e.mse_sample is None else e.entry(e.mse_sample, e.error_unit, z="drawn", samples=e.samples)


@register("metric", "log_p")
def log_p(e: Evidence) -> Entry | None:
    r"""log p(x) by importance sampling, as ELBO (all images) + mean gap (log p - ELBO) over some (difference estimator).

    .. math:: \log \hat p(x) = \log \frac1K \sum_k \frac{p(x, z_k)}{q(z_k|x)}, \quad z_k \sim q(z|x)

    A lower bound in expectation that rises with K. `se` is the gap's, how well the mean over this split is known; where all
    images are sampled it is over images, as the bound's. `se_sampling` is over images in both cases, by the two-phase formula
    S^2(log p) / N + (1/n - 1/N) S^2(gap). `mc_se` is the draws' share, by the delta method: where images have an effective
    sample size below about 10, a few draws carry the weight and `mc_se` is an underestimate. `mode` "adaptive": K is
    chosen for each image (diabolo.adaptive).

    Reference: Burda et al. (2016), arXiv:1509.00519, section 5.
    """
    if e.elbo is None or e.log_p is None or e.index is None or e.log_p_variance is None or e.ess is None:
        return None
    share = e.log_p.numel() / e.elbo.numel()
    gap, gap_se = mean_and_se(e.log_p - e.elbo[e.index])
    plain, plain_se = mean_and_se(e.log_p)
    mc_se = _monte_carlo_se(e.log_p_variance)
    return {
        "value": e.elbo.mean().item() + gap,
        "se": plain_se if share == 1 else gap_se,
        "se_sampling": math.sqrt(plain_se**2 * share + gap_se**2 * (1 - share)),
        "mc_se": mc_se,
        "n": e.log_p.numel(),
        "unit": e.unit,
        "split": e.split,
        "k": e.k,
        "mode": "fixed" if e.adaptive is None else "adaptive",
        **(e.adaptive or {}),
        "bound": "lower bound in expectation",
        "gap": gap,
        "gap_se": gap_se,
        "plain_mean": plain,
        "plain_se": plain_se,
        "ess_median": e.ess.median().item(),
        "ess_min": e.ess.min().item(),
        "ess_p10": e.ess.quantile(0.1).item(),
    }


@register("metric", "log_p_curve")
def log_p_curve(e: Evidence) -> Entry | None:
    """The importance-weighted bound against K on the same images: how far the estimate has still to rise."""
    if not e.curve or not e.curve_variance:
        return None
    points = [
        {
            "k": k,
            "value": mean_and_se(values)[0],
            "se": mean_and_se(values)[1],
            "mc_se": _monte_carlo_se(e.curve_variance[k]),
        }
        for k, values in e.curve.items()
    ]
    return {"points": points, "n": next(iter(e.curve.values())).numel(), "unit": e.unit, "split": e.split}


@register("metric", "active_units")
def active_units(e: Evidence) -> Entry | None:
    """The number of latent dimensions whose posterior mean varies over the data: Var_x(mu_j) > 0.01.

    Absent where there is no prior: the threshold is a share of the prior's variance.

    Reference: Burda et al. (2016), arXiv:1509.00519, section 5.
    """
    if e.elbo is None:
        return None
    variance = e.mean.var(0)
    return {
        "value": int((variance > ACTIVE_VARIANCE).sum()),
        "se": None,
        "n": e.mean.shape[0],
        "unit": "latent dimensions",
        "split": e.split,
        "of": variance.numel(),
        "threshold": ACTIVE_VARIANCE,
    }


@register("metric", "pca")
def pca(e: Evidence) -> Entry | None:
    """Shares of the posterior means' variance along their principal axes, largest first; absent where there is none."""
    power = torch.linalg.svdvals(e.mean - e.mean.mean(0)).square()
    if not power.sum() > 0:
        return None
    return {
        "explained": (power / power.sum()).tolist(),
        "n": e.mean.shape[0],
        "unit": "share of variance",
        "split": e.split,
    }


def proportion(correct: Tensor) -> Entry:
    """A share of examples (N,) that are right, with its binomial standard error."""
    share, n = correct.double().mean().item(), correct.numel()
    return {"value": share, "se": math.sqrt(share * (1 - share) / n), "n": n, "unit": "accuracy"}


def _accuracy(e: Evidence, correct: Tensor, fitted: int) -> Entry:
    return {**proportion(correct), "split": e.split, "fitted_to": fitted}


def linear_predictions(known: Tensor, labels: Tensor, codes: Tensor) -> Tensor:
    """Classes (N,) of codes (N, d) by logistic regression, fitted to known codes (M, d) with labels (M,)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-3))
    probe.fit(known.numpy(), labels.numpy())
    return torch.from_numpy(probe.predict(codes.numpy()))


@register("metric", "linear_probe")
def linear_probe(e: Evidence) -> Entry | None:
    """Accuracy of a linear classifier (logistic regression) on the posterior means, fitted to the training split's."""
    if e.train_mean is None or e.train_labels is None or e.labels is None or e.train_labels.unique().numel() < 2:
        return None
    predicted = linear_predictions(e.train_mean, e.train_labels, e.mean)
    return _accuracy(e, predicted == e.labels, e.train_mean.shape[0])


@register("metric", "nearest_neighbour")
def nearest_neighbour(e: Evidence) -> Entry | None:
    """Accuracy of giving each image the class of the nearest training image in the space of posterior means."""
    if e.train_mean is None or e.train_labels is None or e.labels is None:
        return None
    from sklearn.neighbors import KNeighborsClassifier

    neighbour = KNeighborsClassifier(1, algorithm="brute").fit(e.train_mean.float().numpy(), e.train_labels.numpy())
    return _accuracy(e, torch.from_numpy(neighbour.predict(e.mean.float().numpy())) == e.labels, e.train_mean.shape[0])


def mean_squared_error(decoded: Distribution, x: Tensor) -> Tensor:
    """Mean over the values of an example of (E[x|z] - x)^2, batch (S, B) of the distribution `decoded`."""
    return (decoded.mean - x).square().flatten(2).mean(2)
