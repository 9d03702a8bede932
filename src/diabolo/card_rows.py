"""The loss card in sentences: what was found as rows of label and text, and what does not go well together."""

from __future__ import annotations

import math

from diabolo.card_findings import Findings, near, number
from diabolo.data.scan import Facts
from diabolo.probing import ObjectiveFacts, Sides


def rows(f: Findings) -> list[tuple[str, str]]:
    """Label and text of each fact, warnings last."""
    found = [
        ("What it is", f.headline(with_reasons=False)),
        ("Loss", _formula(f)),
        ("Bound", "; ".join(f.reasons) if f.reasons else _bound(f)),
    ]
    if f.weighed is not None:
        found.append(("Effective beta", _beta(f, f.weighed)))
    found += [
        ("sigma^2", _sigma(f)),
        ("Reduction and unit", _reduction(f)),
        ("Bits per dimension", _bits(f)),
        ("Likelihood", _normalisation(f)),
    ]
    if f.facts is not None:
        found.append(("Data", f.facts.sentence()))
    found += [("Data and likelihood", text) for text in labels(f)]
    return found + [("Warning", text) for text in f.flags]


def _bound(f: Findings) -> str:
    each = "" if f.weighed is None or near(f.weighed.final.distortion, 1) else ", divided by its weight"
    rises = "; it rises towards log p(x) with the number of draws" if f.kind == "importance-weighted bound" else ""
    return f"minus the loss{each} is at most log p(x): p(x|z) is normalised, z is drawn from q(z|x), the KL has weight 1{rises}"


def _formula(f: Findings) -> str:
    if f.weighed is None:
        return f"not measured; {_words(f)}"
    final = f.weighed.final
    if f.sides:
        return _two_sided(f, f.sides, final.rate)
    if f.weighed.draws == "log-mean-exp":
        terms = [f"-log(1/{f.weighed.samples} sum_s p(x, z_s) / q(z_s|x))"]
    else:
        expected = "-log p(x|z)" if final.rate is None else "-E_q[log p(x|z)]"
        terms = [f"{_factor(final.distortion)}{expected}"]
        if final.rate is not None:
            terms.append(f"{_factor(final.rate)}KL(q(z|x) || p(z))")
    if final.contraction:
        terms.append(f"{_factor(final.contraction)}||dz/dx||^2")
    if final.rest:
        terms.append(f"({number(final.rest)})")
    return f"loss = {' + '.join(terms)}; {_words(f)}"


def _two_sided(f: Findings, sides: Sides, rate: float | None) -> str:
    terms = [f"{_factor(sides.over)}SSE(mean above x)", f"{_factor(sides.under)}SSE(mean below x)"]
    if rate is not None:
        terms.append(f"{_factor(rate)}KL(q(z|x) || p(z))")
    if f.sized and sides.rest:
        terms.append(f"({number(sides.rest)})")
    what = (
        "minus the ELBO of a model with two-piece normals in place of p(x|z), constant included: sigma^2 = "
        f"{number(1 / (2 * sides.over))} below the mean of p(x|z) and {number(1 / (2 * sides.under))} above it"
    )
    return f"loss = {' + '.join(terms)}{'; ' + what if f.two_piece else ''}"


def _factor(value: float) -> str:
    return "" if near(value, 1) else f"{number(value)} "


def _words(f: Findings) -> str:
    """-log p in words and symbols."""
    outer = "mean" if f.averaged else "sum"
    constant = " + 1/2 log(2 pi sigma^2)" if f.normalised else ""
    bernoulli = " - log C(l)" if f.density else ""
    family = "the code length of levels" if f.scored.discrete else f"that of the family {f.declared.family}"
    return {
        "squared": f"-log p(x|z) is a {outer} of squared errors (x - mean)^2 / (2 sigma^2){constant}",
        "squared, varying": f"-log p(x|z) is a {outer} of squared errors, each with a sigma^2 of its own",
        "affine": f"-log p(x|z) is a {outer} of cross-entropies -x log l - (1 - x) log(1 - l){bernoulli}",
        "other": f"-log p(x|z) is {family}",
    }[f.scored.shape]


def _beta(f: Findings, weighed: ObjectiveFacts) -> str:
    final = weighed.final
    if final.rate is None:
        return f"none: there is no KL; dloss/d(-log p) = {number(final.distortion)}, measured"
    if f.sides:
        return f"none: no single weight of -log p(x|z) to compare the KL's with; dloss/dKL = {number(final.rate)}, measured"
    text = (
        f"{number(f.final_beta or 0)}, measured by central differences: dloss/dKL = {number(final.rate)}, "
        f"dloss/d(-log p) = {number(final.distortion)}"
    )
    if f.averaged:
        text += f", and -log p is a mean over {f.size} values"
    elif f.sized and f.spec.dimensions > 1 and near(final.distortion * f.spec.dimensions, 1):
        text += f" = 1 / D, a mean over {f.size} values"
    if weighed.warm:
        text += (
            f"; warm-up: {number(f.beta(weighed.first.rate) or 0)} at step 0, its final value from step {weighed.warm:,}; what "
            "is said of the bound holds from there"
        )
    return text


def _sigma(f: Findings) -> str:
    if f.sides:
        kept = f.scored.sigma2
        return "none that training looks at" + ("" if kept is None else f"; evaluation scores sigma^2 = {number(kept)}")
    sigma2 = f.sigma2
    if sigma2 is None:
        kinds = {
            "affine": "none: a cross-entropy, no squared error",
            "squared, varying": "differs between values: it is the decoder's output",
        }
        return kinds.get(f.scored.shape, "none: no squared error")
    divided = ", divided by D" if f.averaged else ""
    text = f"{number(sigma2)}{f.learned}; measured: 1 / the curvature of -log p(x|z) in each value{divided}"
    if f.declared.learns_scale == "as a running mean":
        text += "; it follows the squared error, and what is said of the bound holds with the sigma in use"
    if f.sse_weight is not None:
        text += f"; the same trade-off as the plain sum of squared errors + {number(f.sse_weight)} KL (2 sigma^2 beta)"
        if f.declared.learns_scale == "fixed" and not near(f.final_beta or 0, 1):
            text += f", or as a Gaussian with sigma^2 = {number(f.sse_weight / 2)} and beta = 1"
    return text


def _reduction(f: Findings) -> str:
    known = f.scored.share is not None
    over = ("mean" if f.averaged else "sum") if known else "neither sum nor mean"
    measured = "measured on an example of twice the size" if known else "as far as it could be measured"
    joined = f.weighed.examples if f.weighed else "mean"
    return f"{over} over {f.size} values ({measured}), {joined} over examples; {f.unit.replace('/', ' per ')}"


def _bits(f: Findings) -> str:
    if not f.normalised:
        return "none: the likelihood is unnormalised"
    if f.sides:
        return "none of this loss: it is not -log p(x|z), which evaluation scores"
    factor = f" = nats x {1 / (f.spec.dimensions * math.log(2)):.4g}" if f.sized else ""
    plain = f"nats / (D ln 2){factor}"
    if f.scored.discrete:
        return f"{plain}: exact, p(x|z) is a probability"
    if f.spec.values == "grey" and f.sized:
        return (
            f"{plain} + 8, for a density of data x = (k + u) / 256 with u uniform; these are levels without that noise, so the "
            "number means nothing for them"
        )
    eight = "" if f.sized else "; + 8 for 8-bit data x = (k + u) / 256"
    return f"{plain}, of a density: it depends on the unit of the data{eight}"


def _normalisation(f: Findings) -> str:
    says = f"family {f.declared.family}, declared {'normalised' if f.declared.normalised else 'unnormalised'}"
    if f.scored.mass is None:
        return f"{says}; not measured ({f.scored.obstacle})"
    return f"{says}; measured: {f.mass}"


# ------------------------------------------------------------------------------------------------ data and likelihood
def labels(f: Findings) -> list[str]:
    """What does not go well together in these data and this likelihood, each with a remedy; nothing for data not seen."""
    facts = f.facts
    if facts is None:
        return []
    found = []
    if facts.distinct == 1:
        found.append(f"all values examined are {facts.low:g}: there is nothing to learn")
    if facts.declared != "binary" and facts.binary:
        worse = "; a density has no upper bound on such data (sigma -> 0)" if f.density else ""
        found.append(
            f"the values are declared {facts.declared} but only 0 and 1 occur{worse}: take data.binarize=true with "
            "model.likelihood=bernoulli, or pass them as an array of 0 and 1"
        )
    elif facts.declared != "binary" and facts.distinct == 2:
        found.append(
            f"the values are declared {facts.declared} but only 2 occur: as 0 and 1 they suit model.likelihood=bernoulli"
        )
    elif facts.declared == "grey" and facts.on_grid and f.density:
        found.append(_undequantised(facts))
    if f.normalised and not f.declared.normalised:
        found.append(
            f"the likelihood is declared unnormalised, but of these values it is a likelihood ({f.mass}): take "
            f"{'model.likelihood=bernoulli' if f.scored.shape == 'affine' else 'one that says so'}, whose numbers may be ranked"
        )
    sigma2 = f.sigma2
    if sigma2 is not None and not f.averaged and f.declared.learns_scale == "fixed" and sigma2 > facts.sd**2 > 0:
        found.append(_wide(facts, sigma2, f.spec.dimensions))
    return found


def _undequantised(facts: Facts) -> str:
    return (
        f"values on the 8-bit grid k/255, {100 * (facts.zeros + facts.ones):.0f} % of them exactly 0 or 1, scored by a density: "
        "nats may be compared between models of these data, but bits/dim needs dequantisation (x = (k + u) / 256, u uniform)"
    )


def _wide(facts: Facts, sigma2: float, dimensions: int) -> str:
    worth = dimensions * facts.sd**2 / (2 * sigma2)
    return (
        f"sigma^2 = {number(sigma2)} is above the variance of the values, {facts.sd**2:.3g}: giving each value the mean costs "
        f"{worth:.3g} nats more than a perfect decoder, and a code can gain no more than that; take a sigma that is learned, or "
        f"one below {facts.sd:.2g}"
    )
