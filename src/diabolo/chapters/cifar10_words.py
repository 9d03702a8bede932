"""The words of the CIFAR-10 chapter around its notes: the summary, the answer, what may be compared, what others reached.

Pure functions of measured numbers; `found` is what `cifar10_numbers.gathered` returns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from diabolo.chapters.cifar10_article import (
    ARTICLE,
    ARTICLE_DIMENSIONS,
    NAMES,
    VARIANCE,
    density_bits,
    dropped_constant,
)
from diabolo.language import joined, say
from diabolo.recorded import shown_k
from diabolo.tables import number, signed

Found = Mapping[str, Any]

#: What others reached on CIFAR-10, and what it cost them: published values, with their source.
OTHERS = (
    (
        say(
            "A convolutional ladder VAE with 15 latent layers and a mixture of logistics for the pixels: 3.36 "
            "bits/dim, with about 15 million parameters."
        ),
        "github.com/addtt/ladder-vae-pytorch",
    ),
    (
        say(
            "VDVAE, 45 latent layers: 2.87 bits/dim, with 39 million parameters and just under a week on two GPUs. It "
            "is a VAE as the one here; what it has more is latents on every scale of the image, and a likelihood of "
            "8-bit pixels."
        ),
        "github.com/openai/vdvae",
    ),
    (
        say(
            "RAE-L2, a plain autoencoder with a penalty on its codes and its decoder's weights: FID 74.16 of samples, "
            "where the VAE beside it has 106.37. Its cost: a mixture of ten Gaussians, fitted to the codes afterwards."
        ),
        "arXiv:1903.12436",
    ),
)


PLANS = {
    "quick": say("quick"),
    "normal": say("normal"),
    "locality": say("with permuted pixels"),
    "full": say("full"),
    "smoke": say("smoke"),
}


def _arrow(one: str, other: str) -> str:
    return f"{one} \u2192 {other}"


def _change(found: Found, base: str, metric: str, digits: int) -> str:
    """A metric of a network with sigma^2 = 1/2, and of the same with sigma at its optimum."""
    runs = found["runs"]
    values = [number(runs[name][metric]["value"], digits) for name in (base, f"{base}-optimal")]
    return _arrow(*values)


def above(found: Found) -> int:
    """How many eigenvalues of the training covariance exceed the article's sigma^2."""
    return sum(value > VARIANCE for value in found["linear"]["eigenvalues"])


def epochs(found: Found) -> str:
    return say("1 epoch") if found["epochs"] == 1 else say("{n} epochs", n=found["epochs"])


# ------------------------------------------------------------------------------------------------ summary
def summary(found: Found) -> list[tuple[str, str, str]]:
    """The chapter in four lines: a label, its number, a remark."""
    constant = dropped_constant(ARTICLE_DIMENSIONS)
    lines: list[tuple[str, str, str]] = [
        (
            say("The article's ConvVAE, constant restored"),
            say("{bits} bits/dim", bits=number(density_bits(constant - ARTICLE["c4"], ARTICLE_DIMENSIONS), 3)),
            say(
                "its {value} read as \u2212(SSE + KL); storing the pixels as they are: 8",
                value=number(ARTICLE["c4"], 4),
            ),
        ),
        (
            say("Latents that a linear model can use there"),
            f"{above(found)}",
            say("eigenvalues of the covariance above \u03c3\u00b2 = 1/2, of {total}", total=f"{found['dimensions']:,}"),
        ),
    ]
    if "c4" in found["paired"]:
        gain = found["paired"]["c4"]["psnr"]
        lines += [
            (
                say("ConvVAE, \u03c3\u00b2 = 1/2 \u2192 optimal \u03c3: bits/dim"),
                _change(found, "c4", "bits_per_dim", 2),
                say("the same network, {epochs} each; lower is better", epochs=epochs(found)),
            ),
            (
                say("Its PSNR and active directions"),
                say("{gain} dB", gain=signed(gain["value"], 1)),
                say(
                    "{psnr} dB at z = \u03bc; active directions {directions}",
                    psnr=_change(found, "c4", "psnr", 1),
                    directions=_change(found, "c4", "directions", 0),
                ),
            ),
        ]
    return lines


# ------------------------------------------------------------------------------------------------ why it was blurred
def why(found: Found) -> list[str]:
    """The answer in plain words."""
    total = sum(found["linear"]["eigenvalues"])
    noise, spread = math.sqrt(VARIANCE), math.sqrt(total / found["dimensions"])
    told: list[str] = [
        say(
            'A loss of "squared error plus KL" is a statement of probability in disguise. It says: every pixel is '
            "what the "
            "decoder paints, plus noise with a variance of 1/2, that is a standard deviation of {noise} on a scale "
            "from 0 to 1. The pixels of CIFAR-10 themselves vary by {spread} only. The model is told that its images "
            "are mostly noise.",
            noise=number(noise),
            spread=number(spread),
        ),
        say(
            "What is noise need not be remembered. Each latent number costs KL, and under so much noise it pays for "
            "itself only if it explains a variance above 1/2, summed over the image. A linear model finds {count} "
            "such directions, and leaves the rest of its code empty, however large that is. What is not in the code "
            "cannot be in the picture: it is blurred.",
            count=above(found),
        ),
    ]
    if "c4" in found["paired"]:
        optimal = found["runs"]["c4-optimal"]
        told.append(
            say(
                "The cure is one number. Let \u03c3 be as large as the errors really are (here {sigma}), and train "
                "the same network for the same {epochs}: active directions {directions}, PSNR {psnr} dB, bits/dim "
                "{bits}.",
                sigma=number(optimal["sigma"], 3),
                epochs=epochs(found),
                directions=_change(found, "c4", "directions", 0),
                psnr=_change(found, "c4", "psnr", 2),
                bits=_change(found, "c4", "bits_per_dim", 2),
            )
        )
    if "c2" in found["paired"]:
        told.append(
            say(
                "Done to the MLP, C2, the same gives: active directions {directions}, PSNR {psnr} dB, bits/dim {bits}. "
                "Claim 3 below says of both networks whether that is sharper.",
                directions=_change(found, "c2", "directions", 0),
                psnr=_change(found, "c2", "psnr", 2),
                bits=_change(found, "c2", "bits_per_dim", 2),
            )
        )
    return told


def reading(found: Found) -> list[str]:
    """Which numbers may be compared with which, one line each."""
    return [
        say(
            "Bits/dim is what a lossless code would spend on one pixel value; lower is better, and {uniform} is what "
            "a file spends that stores the pixels as they are. Gaussians are densities, so each level k becomes x = "
            "(k + u)/256 with u uniform, and 8 is added: an upper bound on the code length. Models are ranked in this "
            "convention.",
            uniform=8,
        ),
        say(
            "A Gaussian can also be scored at the points k/255 alone, as the article's loss does. That is no code "
            "length, and is shown only for the lines in closed form, in a table of its own."
        ),
        say(
            "As trained, and calibrated: the second replaces \u03c3 by the best one for the training images and "
            "changes nothing else. It tells a bad \u03c3 from a bad network."
        ),
        say(
            "SSE and the plane of rate and distortion draw z from q(z|x); PSNR, SSIM and all pictures of "
            "reconstructions take z = \u03bc. PSNR is that of the mean error over all pixels of all images."
        ),
        *_estimates(found),
        say(
            "Errors are one standard error over images. Each row is one training run: another seed would differ by "
            "more. All runs were trained for {epochs}, which is short: compare them with one another, not with a "
            "network trained to the end.",
            epochs=epochs(found),
        ),
    ]


def _estimates(found: Found) -> list[str]:
    """What L_K is, where it was measured."""
    measured = next((row["log_p"] for row in found["runs"].values() if "log_p" in row), None)
    if measured is None:
        return [say("L_K, the importance-weighted bound, was not measured here.")]
    return [
        say(
            "L_K is the importance-weighted bound with K = {k} on {n} images. It is called log p(x) only where the median "
            "effective sample size (ESS) exceeds 10; elsewhere a few draws carry it, and it is a bound.",
            k=shown_k(measured["k"]),
            n=f"{measured['n']:,}",
        )
    ]


# ------------------------------------------------------------------------------------------------ around figures and tables
def distance(found: Found) -> str | None:
    """How far the convolutional network is from the pPCA of its size."""
    away = found["distance"]
    if away is None:
        return None
    return say(
        "{name} after {epochs} against the pPCA with {latent} latents: {ranked} bits/dim as ranked, {grid} at k/255, "
        "and {psnr} dB against its projection. {verdict}",
        name=NAMES["c4-optimal"],
        epochs=epochs(found),
        latent=away["latent"],
        ranked=with_sign(away["bits_per_dim"], 4),
        grid=with_sign(away["grid"], 4),
        psnr=with_sign(away["psnr"], 2),
        verdict=say("The network is behind the linear model.")
        if away["bits_per_dim"]["value"] > 0
        else say("The network is ahead of the linear model."),
    )


def with_sign(entry: Mapping[str, Any], digits: int) -> str:
    return f"{signed(entry['value'], digits)} \u00b1 {number(entry['se'], digits)}"


def plan_told(found: Found, plan: str, missing: Sequence[str]) -> str | None:
    """Which runs this plan of the chapter leaves out; None where it leaves out nothing."""
    if not missing:
        return None
    return say(
        "This is the {plan} plan of the chapter, with {epochs}. It leaves out: {names}. Figures and numbers that need "
        "them are left out too, and each place says so.",
        plan=PLANS.get(plan, plan),
        epochs=epochs(found),
        names=joined("{before}; {after}", [NAMES[name] for name in missing]),
    )
