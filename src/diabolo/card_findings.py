"""What was measured of a loss, and what follows from it: the effective beta, bound or not, contradictions.

    loss = a D + b K + c J,   D = -log p(x|z), K = KL(q(z|x) || p(z)), J = ||dz/dx||^2

It is an ELBO where p(x|z) is normalised, z is drawn from q, and a = b = 1, c = 0; the effective beta is b / (a s), where s is
the share of each value in D: 1 in a sum over the D values, 1 / D in a mean. With squared errors, of variance sigma^2,

    loss = a s / (2 sigma^2) [ SSE + 2 sigma^2 beta K ] + constant

so that a Gaussian with beta = 1 is the same trade-off as the sum of squared errors with a KL weighed by 2 sigma^2. A loss whose
squared errors weigh differently above and below the mean has no such D, a, s and beta: `sides` says what it has.

Reference: Rybkin et al., Simple and effective VAE training with calibrated decoders (2021), arXiv:2006.13202.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from diabolo.data.scan import Facts
from diabolo.data.spec import DataSpec
from diabolo.probing import MASS_TOLERANCE, TOLERANCE, LikelihoodFacts, ObjectiveFacts, Sides

Kind = Literal["elbo", "importance-weighted bound", "loose bound", "no bound", "not known"]


@dataclass(frozen=True)
class Declared:
    """What the parts say of themselves; `prior`: its density is exact, an estimate, or none."""

    family: str
    normalised: bool
    discrete: bool
    prior: str
    density: bool
    learns_scale: Literal["fixed", "by gradient", "as a running mean"]


def near(a: float, b: float) -> bool:
    """Equal as far as a measurement can tell."""
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-7)


def number(value: float) -> str:
    """A number as people write it: the rounding of measurements is not shown."""
    return f"{value:.5g}"


@dataclass(frozen=True)
class Findings:
    """Everything that is known of a loss. `weighed` is None where the objective could not be measured, for the reason in
    `obstacle`. `sized`: whether `spec.shape` is the data's or stands for one that is not known. `steps` of the run; `facts`
    of the data, where they were looked at."""

    declared: Declared
    scored: LikelihoodFacts
    weighed: ObjectiveFacts | None
    spec: DataSpec
    steps: int
    facts: Facts | None = None
    sized: bool = True
    obstacle: str = ""

    # ---------------------------------------------------------------- numbers
    @property
    def size(self) -> str:
        return f"D = {self.spec.dimensions:,}" if self.sized else "D"

    @property
    def unit(self) -> str:
        return "nats/value" if self.averaged else "nats/image" if len(self.spec.shape) == 3 else "nats/example"

    @property
    def normalised(self) -> bool:
        """As measured; as declared where it could not be."""
        mass = self.scored.mass
        return self.declared.normalised if mass is None else abs(mass - 1) <= MASS_TOLERANCE

    @property
    def density(self) -> bool:
        """Whether p(x|z) is a density rather than a probability."""
        return self.normalised and not self.scored.discrete

    @property
    def averaged(self) -> bool:
        """Whether -log p is a mean over the values."""
        return self.scored.share is not None and self.scored.share != 1

    @property
    def mass(self) -> str:
        verb = "sums" if self.scored.discrete else "integrates"
        return f"over {self.scored.domain}, two values together, p(x|z) {verb} to {self.scored.mass:.4g}"

    @property
    def learned(self) -> str:
        how = self.declared.learns_scale
        return "" if how == "fixed" else f" now, learned {how}"

    @property
    def sides(self) -> Sides | None:
        """Of a loss that never asks for p(x|z), only for its mean."""
        return self.weighed.sides if self.weighed else None

    @property
    def sigma2(self) -> float | None:
        """The variance of the squared errors that are minimised."""
        return None if self.sides else self.scored.sigma2

    @property
    def weight(self) -> float | None:
        """dloss / d(-log p(x|z))."""
        return None if self.weighed is None or self.sides else self.weighed.final.distortion

    def beta(self, rate: float | None) -> float | None:
        """Of a KL weighed by `rate`: against the sum over the values, at weight 1."""
        if self.weighed is None or rate is None or not self.weight:
            return None
        return rate / (self.weight * (self.scored.share or 1))

    @property
    def final_beta(self) -> float | None:
        return self.beta(self.weighed.final.rate) if self.weighed else None

    @property
    def sse_weight(self) -> float | None:
        """What the KL weighs against the plain sum of squared errors: 2 sigma^2 beta."""
        sigma2, beta = self.sigma2, self.final_beta
        return None if sigma2 is None or beta is None else 2 * sigma2 * beta

    # ---------------------------------------------------------------- the verdict
    @property
    def kind(self) -> Kind:
        if self.weighed is None:
            return "not known"
        if self._against:
            return "no bound"
        if not near(self.final_beta or 0, 1):
            return "loose bound"
        return "importance-weighted bound" if self.weighed.draws == "log-mean-exp" else "elbo"

    @property
    def reasons(self) -> list[str]:
        """Why it is no ELBO; empty where it is one."""
        if self.weighed is None:
            return [f"the objective cannot be measured ({self.obstacle})"]
        if self.kind != "loose bound":
            return self._against
        beta = self.final_beta or 0
        return [
            f"beta = {number(beta)}: the KL weighs more than in the ELBO, so minus the loss lies below the ELBO by "
            f"{number(beta - 1)} KL: still at most log p(x), but its maximum is not that of the ELBO"
        ]

    @cached_property
    def _against(self) -> list[str]:
        """Why it is no bound."""
        assert self.weighed is not None
        return [*self._model(), *self._likelihood(), *self._objective(self.weighed)]

    def _model(self) -> Iterator[str]:
        if self.declared.prior == "none":
            yield "a plain autoencoder has no prior p(z)"
        if self.declared.prior == "estimate":
            yield "log p(z) of this prior is an estimate"
        if not self.declared.density:
            yield "q(z|x) is a point mass without a density, so there is no KL"

    def _likelihood(self) -> Iterator[str]:
        beta = self.final_beta
        if self.averaged:
            heavier = (
                f": the KL weighs {self.size} times more than in the bound, effective beta = {number(beta)}"
                if beta
                else ""
            )
            yield f"-log p(x|z) is a mean over the values{heavier}"
        elif not self.normalised:
            relaxed = self.scored.shape == "affine" and not self.scored.discrete
            what = "binary cross-entropy on grey levels" if relaxed else "the likelihood"
            mean = " (it is the mean log p(b) of random binarisations b of x)" if relaxed else ""
            yield f"{what} is unnormalised{mean}: {self.mass if self.scored.mass is not None else 'it says so itself'}"

    def _objective(self, weighed: ObjectiveFacts) -> Iterator[str]:
        final, beta = weighed.final, self.final_beta
        if weighed.sides:
            yield from self._two_sides(weighed.sides)
        elif not final.linear:
            yield (
                "the loss is no weighted sum of distortion and KL: its derivatives differ by "
                f"{100 * final.bends:.3g} % from point to point"
            )
        if weighed.changed:
            yield (
                f"a denoising criterion: the encoder sees a corrupted x ({100 * weighed.changed:.0f} % of the values changed, by "
                f"{weighed.change:.2g} root mean square over all), and the clean x is scored"
            )
        if final.contraction:
            yield f"it adds {number(final.contraction)} times the squared Jacobian of the code"
        if weighed.decodes_mean:
            yield "it decodes the mean of q(z|x) instead of a draw"
        if weighed.draws == "other":
            yield "its draws of z are joined neither by a mean nor by log-mean-exp"
        if self.weight is not None and self.weight <= 0:
            yield f"the distortion weighs {number(self.weight)}"
        if beta is not None and beta < 1 and not near(beta, 1):
            yield f"beta = {number(beta)}: the KL weighs less than in the bound, so minus the loss may exceed log p(x)"
        if final.rest and not weighed.sides:
            yield f"it differs from the weighted sum by a constant of {number(final.rest)} nats"

    def _two_sides(self, sides: Sides) -> Iterator[str]:
        low = sides.expectile < 0.5
        where, seen = ("below", "dark") if low else ("above", "bright")
        pictures = f": pictures come out too {seen}" if len(self.spec.shape) == 3 else ""
        yield (
            f"over- and under-prediction cost differently: a squared error weighs {number(sides.over)} where the mean of p(x|z) "
            f"lies above the value and {number(sides.under)} where it lies below, so that the best mean is no mean of x given z "
            f"but its {sides.expectile:.3g} expectile, which lies {where} it{pictures}"
        )
        yield "it never asks for the density p(x|z), which is what an evaluation scores"

    @property
    def two_piece(self) -> bool:
        """Whether the loss is minus the ELBO with normals of two halves in place of p(x|z)."""
        if self.sides is None or self.weighed is None or not near(self.weighed.final.rate or 0, 1):
            return False
        return abs(self.sides.mass(self.spec.dimensions) - 1) <= MASS_TOLERANCE

    def headline(self, with_reasons: bool = True) -> str:
        """The card in one sentence."""
        draws = self.weighed.samples if self.weighed else 0
        named = {
            "elbo": "this objective is an ELBO",
            "importance-weighted bound": f"this objective is the importance-weighted bound of {draws} draws of z",
            "loose bound": "this objective is a bound looser than the ELBO",
            "no bound": "this objective is no bound on log p(x)",
            "not known": "what this objective is could not be measured",
        }[self.kind]
        weight = self.weight
        times = "" if weight is None or near(weight, 1) else f", times {number(weight)}"
        why = f": {'; '.join(self.reasons)}" if with_reasons and self.reasons else ""
        return f"{named}{times} ({', '.join(self._numbers())}){why}"

    def _numbers(self) -> Iterator[str]:
        if self.sigma2 is not None:
            yield f"sigma^2 = {number(self.sigma2)}{self.learned}"
        if self.final_beta is not None:
            yield f"effective beta = {number(self.final_beta)}"
        yield self.unit

    # ---------------------------------------------------------------- contradictions
    @property
    def flags(self) -> list[str]:
        """What must not be overlooked."""
        return [*self._mass_flags(), *(self._objective_flags(self.weighed) if self.weighed else ())]

    def _mass_flags(self) -> Iterator[str]:
        if self.declared.discrete and self.scored.mass is not None and not self.scored.discrete:
            yield f"the likelihood says that it gives probabilities, but it is a density: {self.mass}"
        if self.scored.mass is None or self.declared.normalised == self.normalised:
            return
        if self.normalised:
            return  # it says less than it could: a label
        yield f"the likelihood says that it is normalised, but it is not: {self.mass}"
        if self.declared.learns_scale == "by gradient" and self.scored.sigma2:
            yield "sigma is learned by gradient while the constant that holds it is missing: it may grow without end"

    def _objective_flags(self, weighed: ObjectiveFacts) -> Iterator[str]:
        if weighed.final.rest and self.declared.learns_scale == "by gradient" and self.scored.sigma2:
            yield "sigma is learned by gradient, but the objective leaves out a constant: if it is sigma's, sigma has no optimum"
        if weighed.examples != "mean":
            yield f"the loss is a {weighed.examples} over the examples of a batch, no mean: its size depends on train.batch"
        if weighed.warm >= self.steps > 1:
            yield (
                f"the warm-up ends at step {weighed.warm:,}, after this run's {self.steps:,}: beta = "
                f"{number(self.beta(weighed.last.rate) or 0)} at its last step"
            )
