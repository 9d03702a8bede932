"""Importance sampling with as many draws for each image as its log p(x) needs, or with one K for all.

n images, K draws of one image, w = p(x, z) / r(z) the weights, v = Var(w) / E[w]^2 their relative variance. The proposal r is
fitted to each image (diabolo.proposals) or is q(z | x), as it always is for one K. The estimate log mean w has the standard
error sqrt(v / K), by the delta method, the bias -v / (2 K), and K / (1 + v) effective draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diabolo.metrics import effective_sample_size, log_p_variance
from diabolo.models.objectives import log_mean_exp
from diabolo.proposals import FITTED, POSTERIOR, Fitted
from diabolo.seeds import fold

#: (images (n,), K, seed) -> log w (K, B) of consecutive batches of them, float64, the noise keyed by image.
Weights = Callable[[Tensor, int, int], Iterator[Tensor]]

#: Draws of the first pilot; where their weights are too uneven to say anything, the next has `GROWTH` times as many.
PILOT, GROWTH = 64, 4
#: The largest K of an image, and of its pilot. At 784-400-400-20 the former take about a second of one core.
CEILING, LARGEST_PILOT = 100_000, 25_000
#: Below about 10 effective draws the delta method sees too small an error: the draws that would show it are still missing.
LEAST_ESS = 20
#: A pilot of LEAST_ESS effective draws knows v within about a third, and rather sees too little: more draws, so that most
#: images meet what was asked for.
MARGIN = 2.0
#: The bias that is allowed beside a standard error.
BIAS_SHARE = 0.4


@dataclass(frozen=True)
class Plan:
    """How many draws each of n images gets, and whether it needs more than `CEILING` (n,); the pilots' draws are thrown away."""

    k: Tensor  # (n,) long
    at_ceiling: Tensor  # (n,) bool
    pilot_draws: int


@dataclass(frozen=True)
class Estimates:
    """log p(x) of n images in nats, with its Monte-Carlo variance, jackknife bias and effective sample size, each (n,)."""

    log_p: Tensor
    variance: Tensor
    bias: Tensor
    ess: Tensor


def words(se: float) -> str:
    """What is said for K where it is chosen image by image."""
    return f"adaptive (SE <= {se:g})"


def jackknife_bias(log_w: Tensor) -> Tensor:
    r"""The bias of log mean w over dimension 0 of log_w (K, B), K > 1, by leaving out one draw at a time: (B,) nats.

    .. math:: (K - 1) \left( \tfrac1K \sum_k \log \tfrac{1}{K - 1} \sum_{j \ne k} w_j - \log \tfrac1K \sum_j w_j \right)

    Negative as a rule, and minus infinity where one draw has all the weight.

    Reference: Quenouille, Notes on bias in estimation (1956), https://doi.org/10.1093/biomet/43.3-4.353.
    """
    k = log_w.shape[0]
    return (k - 1) * (torch.log1p(-torch.softmax(log_w, 0)).mean(0) + math.log(k / (k - 1)))


def draws_needed(log_w: Tensor, se: float) -> Tensor:
    r"""The K that a pilot log_w (n, B) says each image needs, (B,), not rounded, infinite where it cannot say.

    .. math:: K = \max\left( c \tfrac{v}{se^2},\ c \tfrac{n |b|}{0.4\, se},\ 20 (1 + v) \right), \quad c = 2

    v: the weights' relative variance, b: the jackknife bias at n draws, which falls as 1 / K. The last term asks for an
    effective sample size of 20: below about 10 the standard error is itself an underestimate.
    """
    n = log_w.shape[0]
    v, bias = n * log_p_variance(log_w), jackknife_bias(log_w).abs()
    needs = torch.stack([MARGIN * v / se**2, MARGIN * n * bias / (BIAS_SHARE * se), LEAST_ESS * (1 + v)])
    return needs.amax(0).nan_to_num(nan=math.inf, posinf=math.inf)


def constant(images: int, k: int) -> Plan:
    """The same K for all."""
    return Plan(torch.full((images,), k), torch.zeros(images, dtype=torch.bool), 0)


def plan(
    weights: Weights, index: Tensor, se: float, seed: int, improve: Callable[[Tensor, int], object] | None = None
) -> Plan:
    """Choose K for each image of index (n,), so that its standard error is `se` nats and its bias 0.4 `se` at most.

    K is chosen from pilot draws that the estimate never sees: p(x) stays estimated without bias, which stopping at a pleasing
    estimate would spoil. A pilot grows until it has `LEAST_ESS` effective draws, or shows by its variance, which it rather
    underestimates, that the ceiling is too low; before it grows `improve` (images, seed) may change what `weights` draws
    them from. K is rounded up to a power of 2^(1/4), so that many images share one.
    """
    need, waiting, spent, n = torch.zeros(len(index), dtype=torch.float64), torch.arange(len(index)), 0, PILOT
    while len(waiting) and n <= LARGEST_PILOT:
        found = [_pilot(log_w, se) for log_w in weights(index[waiting], n, fold(seed, "pilot", n))]
        need[waiting], doubtful = (torch.cat(column) for column in zip(*found))
        spent += n * len(waiting)
        waiting, n = waiting[doubtful], n * GROWTH
        if improve is not None and len(waiting):
            improve(index[waiting], fold(seed, "improve", n))
    rounded = torch.exp2((4 * need.log2()).ceil() / 4).ceil()
    return Plan(rounded.clamp(max=CEILING).long(), need > CEILING, spent)


def _pilot(log_w: Tensor, se: float) -> tuple[Tensor, Tensor]:
    """The K needed and whether more draws might say otherwise."""
    beyond = MARGIN * log_w.shape[0] * log_p_variance(log_w) / se**2 > CEILING
    return draws_needed(log_w, se), (effective_sample_size(log_w) < LEAST_ESS) & ~beyond


def estimates(weights: Weights, index: Tensor, k: Tensor, seed: int, advance: Callable[[int], object]) -> Estimates:
    """log p(x) of the images index (n,) with k (n,) draws each; images of one K are drawn together."""
    columns = torch.empty(4, len(index), dtype=torch.float64)
    for draws in k.unique().tolist():
        places = (k == draws).nonzero().flatten()
        done = 0
        for log_w in weights(index[places], draws, seed):
            among = places[done : done + log_w.shape[1]]
            columns[:, among] = torch.stack(_estimate(log_w))
            done += log_w.shape[1]
            advance(log_w.shape[1])
    return Estimates(*columns)


def _estimate(log_w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bias = jackknife_bias(log_w) if log_w.shape[0] > 1 else torch.zeros_like(log_w[0])
    return log_mean_exp(log_w), log_p_variance(log_w), bias, effective_sample_size(log_w)


def summary(chosen: Plan, found: Estimates, se: float, fitted: Fitted | None = None) -> dict[str, Any]:
    """What evaluation.json says of an adaptive estimate: what was asked for, the K chosen, and how far it was met.

    `within`: the images whose measured standard error is at most `se` and whose jackknife bias at most 0.4 `se`. Where the
    weights have so heavy a tail that their variance grows with the draws, as under a q much narrower than the posterior, a
    pilot sees too little of it and few images are within. `proposal`: where the draws come from; `fit_draws`: gradients that
    it was fitted with, of all images (0 where it is q). Neither these nor the pilots' draws are among `draws`.
    """
    within = (found.variance.sqrt() <= se) & (found.bias.abs() <= BIAS_SHARE * se)
    return {
        "se_asked": se,
        "proposal": POSTERIOR if fitted is None else FITTED,
        "k_median": int(chosen.k.median()),
        "k_min": int(chosen.k.min()),
        "k_max": int(chosen.k.max()),
        "draws": int(chosen.k.sum()),
        "pilot_draws": chosen.pilot_draws,
        "fit_draws": 0 if fitted is None else fitted.draws,
        "ceiling": CEILING,
        "at_ceiling": int(chosen.at_ceiling.sum()),
        "at_ceiling_share": chosen.at_ceiling.double().mean().item(),
        "within": int(within.sum()),
    }
