"""The claims of the sharp chapter: pure functions from measured numbers to verdicts, each by a rule that is printed.

`found` is what `sharp_numbers.gathered` returns. A claim whose runs were not made is "not tested".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diabolo.chapters.cifar10_article import VARIANCE
from diabolo.chapters.cifar10_claims import SIGMAS, Claim, Figure, Words, decided, plus, surely_above, surely_below
from diabolo.chapters.sharp_numbers import BASE, RIVAL, above, base_of, full_covariance, rival, samples_of
from diabolo.chapters.sharp_words import NAMES, SETS, change
from diabolo.language import say
from diabolo.tables import number, signed

Found = Mapping[str, Any]

#: Decibels that the sharp network is to reach.
DECIBELS = 30.5
#: What samples by class are to reach: the share that shows the class asked for; coverage as a share of that of training images;
#: the Frechet distance as a share of the mixture's; the share that may be copied.
ACCURACY, COVERED, CLOSER, COPIED = 0.5, 0.5, 0.5, 0.1
#: The changes of the network, without that of the likelihood.
_PARTS = ("short-vector", "short-no-blocks", "short-no-shortcut")


def claims(found: Found) -> list[Claim]:
    """The four claims with their verdicts."""
    return [_variance(found), _parts(found), _linear(found), _prior(found)]


# ------------------------------------------------------------------------------------------------ 1: sigma^2
def _variance(found: Found) -> Claim:
    runs, count = found["runs"], above(found, VARIANCE)
    tested = "short-fixed" in found["gains"]
    figures = [_room(found, count, VARIANCE, "1/2", count < runs["sharp"]["active_units"]["of"])]
    if runs["sharp"]["sigma"] is not None:
        variance = runs["sharp"]["sigma"] ** 2
        figures.append(_room(found, above(found, variance), variance, f"{variance:.4g}", None))
    if tested:
        gain, fixed = found["gains"]["short-fixed"], runs["short-fixed"]
        used = [runs[name]["directions"]["value"] for name in (BASE, "short-fixed")]
        figures += [
            Figure(
                say("active directions, \u03c3 learned \u2192 fixed"), f"{used[0]} \u2192 {used[1]}", used[1] < used[0]
            ),
            Figure(
                say("PSNR in dB at z = \u03bc, \u03c3 learned \u2192 fixed"),
                f"{change(found, BASE, 'short-fixed', 'psnr', 2)} ({signed(gain['value'])} \u00b1 {number(gain['se'])})",
                surely_below(gain, 0),
            ),
            Figure(say("bits/dim as trained, \u03c3 fixed"), plus(fixed["bits_per_dim"], 4), None),
        ]
    words = Words(
        title=say("\u03c3\u00b2 = 1/2 is enough to blur"),
        statement=say(
            "The sharp network itself is blurred if nothing but its \u03c3\u00b2 is set to that of the article's loss."
        ),
        rule=say(
            "Supported if fewer eigenvalues than latents exceed 1/2, and with \u03c3 fixed the same network in as many epochs "
            "has fewer active directions and a PSNR that is lower by {sigmas} standard errors of the difference on the "
            "same images.",
            sigmas=SIGMAS,
        ),
        supported=say(
            "The network could do better, and is told not to: with \u03c3\u00b2 = 1/2 detail is not worth its nats."
        ),
        untested=say("It needs the ablation, which this plan leaves out."),
    )
    return decided(1, words, figures, tested)


def _room(found: Found, count: int, variance: float, told: str, holds: bool | None) -> Figure:
    total = f"{found['dimensions']:,}"
    return Figure(
        say("eigenvalues above \u03c3\u00b2 = {variance}, of {total}", variance=told, total=total), f"{count}", holds
    )


# ------------------------------------------------------------------------------------------------ 2: the parts
def _parts(found: Found) -> Claim:
    made = [name for name in _PARTS if name in found["gains"]]
    figures = []
    for name in made:
        gain = found["gains"][name]
        base = base_of(name)
        text = f"{change(found, base, name, 'psnr', 2)} ({signed(gain['value'])} \u00b1 {number(gain['se'])})"
        figures.append(Figure(say("{name}: PSNR in dB at z = \u03bc", name=NAMES[name]), text, surely_below(gain, 0)))
        bits = change(found, base, name, "bits_per_dim", 4)
        figures.append(Figure(say("{name}: bits/dim as trained", name=NAMES[name]), bits, None))
    words = Words(
        title=say("Each part of the network has its share"),
        statement=say(
            "A grid as code, residual blocks and the linear shortcut each make reconstructions sharper. The vector as code has "
            "as many numbers and many more parameters; it can have no shortcut, so that it is held against the grid without one. "
            "Without residual blocks what is left is linear."
        ),
        rule=say(
            "Supported if each change alone lowers the PSNR by {sigmas} standard errors of the difference on the same images: "
            "of the short network, or of that without a shortcut for the vector.",
            sigmas=SIGMAS,
        ),
        supported=say("None of them is idle at this number of images seen."),
        untested=say("It needs the ablation, which this plan leaves out."),
    )
    return decided(2, words, figures, len(made) == len(_PARTS))


# ------------------------------------------------------------------------------------------------ 3: the linear model
def _linear(found: Found) -> Claim:
    own, line = found["runs"]["sharp"], rival(found)
    tested = line is not None and own["family"] == "gaussian" and own["active_units"]["of"] == RIVAL
    figures = [Figure(say("PSNR in dB at z = \u03bc"), plus(own["psnr"], 2), own["psnr"]["value"] >= DECIBELS)]
    if line is not None:
        below = surely_below(own["bits_per_dim"], line["bits_per_dim"])
        projection = "\u2013" if line["psnr_projection"] is None else number(line["psnr_projection"])
        figures += [
            Figure(say("bits/dim, a bound"), plus(own["bits_per_dim"], 4), below),
            Figure(
                say("pPCA with {latents} latents, bits/dim, exact", latents=RIVAL),
                f"{number(line['bits_per_dim'], 4)} \u00b1 {number(line['bits_se'], 4)}",
                None,
            ),
            Figure(say("PSNR in dB of the projection on as many axes"), projection, None),
        ]
    if (full := full_covariance(found)) is not None:
        text = f"{number(full['bits_per_dim'], 4)} \u00b1 {number(full['bits_se'], 4)}"
        figures.append(Figure(say("Gaussian with the full covariance, no code, bits/dim, exact"), text, None))
    words = Words(
        title=say("It passes the linear model of its size"),
        statement=say(
            "With {latents} latents the network codes images in fewer bits than the best linear model with as many, and "
            "reconstructs them at {decibels} dB or more.",
            latents=RIVAL,
            decibels=number(DECIBELS, 1),
        ),
        rule=say(
            "Supported if its bound on bits/dim lies below the exact value of that pPCA by {sigmas} standard errors, and its "
            "PSNR at z = \u03bc is at least {decibels} dB.",
            sigmas=SIGMAS,
            decibels=number(DECIBELS, 1),
        ),
        supported=say(
            "With as many latents the network is ahead of the linear model, in spite of its bound. A Gaussian with the full "
            "covariance, which has no code, is another matter: it stands above."
        ),
        untested=say("It needs {latents} latents, and data that a pPCA with as many can be fitted to.", latents=RIVAL),
    )
    return decided(3, words, figures, tested)


# ------------------------------------------------------------------------------------------------ 4: the prior
def _prior(found: Found) -> Claim:
    rows = samples_of(found)
    needed = [rows[name] for name in ("floor", "own", "mixture", "flow-class") if name in rows]
    tested = len(needed) == 4 and "class_accuracy" in needed[-1]
    figures = _reached(*needed) if tested else []
    words = Words(
        title=say("Samples by class: what was aimed at"),
        statement=say(
            "Samples of a prior that is fitted to the codes show the class asked for, cover half as many of the test images as "
            "training images do, and are no copies; those of N(0, I), of the same decoder, are further from the images."
        ),
        rule=say(
            "Supported if our classifier finds the class in {accuracy} % of them, their coverage is at least {covered} % of that "
            "of training images, their Frechet distance is at most {closer} % of the mixture's, at most {copied} % are nearer "
            "to a training image than 99 % of the test images are, and N(0, I) has a larger distance than the mixture by "
            "{sigmas} standard errors.",
            accuracy=number(100 * ACCURACY, 0),
            covered=number(100 * COVERED, 0),
            closer=number(100 * CLOSER, 0),
            copied=number(100 * COPIED, 0),
            sigmas=SIGMAS,
        ),
        supported=say(
            "The decoder could do it all along: what was missing was a prior that knows where the codes are."
        ),
        untested=say("It needs classes that our classifier knows, that is CIFAR-10."),
    )
    return decided(4, words, figures, tested)


def _reached(
    floor: Mapping[str, Any], own: Mapping[str, Any], mixture: Mapping[str, Any], flow: Mapping[str, Any]
) -> list[Figure]:
    distances = [_frechet(name, row) for name, row in (("own", own), ("mixture", mixture), ("flow-class", flow))]
    share, limit = flow["coverage"]["value"], COVERED * floor["coverage"]["value"]
    return [
        Figure(
            say("class recognised, %"), _percent(flow["class_accuracy"]), flow["class_accuracy"]["value"] >= ACCURACY
        ),
        Figure(say("coverage, %"), _percent(flow["coverage"]), share >= limit),
        Figure(say("coverage of training images, %"), _percent(floor["coverage"]), None),
        Figure(say("recall, %"), _percent(flow["recall"]), None),
        Figure(say("recall of training images, %"), _percent(floor["recall"]), None),
        Figure(*distances[0], surely_above(_between(own["frechet"], mixture["frechet"]), 0)),
        Figure(*distances[1], None),
        Figure(*distances[2], flow["frechet"]["value"] <= CLOSER * mixture["frechet"]["value"]),
        Figure(say("memorised, %"), _percent(flow["memorised"]), flow["memorised"]["value"] <= COPIED),
    ]


def _between(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, float]:
    """The difference of two numbers that were measured on samples of their own."""
    return {"value": first["value"] - second["value"], "se": math.hypot(first["se"], second["se"])}


def _frechet(name: str, row: Mapping[str, Any]) -> tuple[str, str]:
    return say("Frechet distance: {name}", name=SETS[name]), plus(row["frechet"], 2)


def _percent(entry: Mapping[str, Any]) -> str:
    return f"{number(100 * entry['value'], 1)} \u00b1 {number(100 * entry['se'], 1)}"
