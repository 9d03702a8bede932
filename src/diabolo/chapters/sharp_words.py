"""The words of the sharp chapter around its claims: names, the summary, the answer, what may be compared.

Pure functions of measured numbers; `found` is what `sharp_numbers.gathered` returns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diabolo.chapters.cifar10_article import VARIANCE
from diabolo.chapters.sharp_numbers import above, full_covariance, rival, samples_of
from diabolo.language import say
from diabolo.tables import number, signed

Found = Mapping[str, Any]

#: What each run is called, in the order of the story.
NAMES = {
    "c1": say("the article's MLP"),
    "c4": say("the article's ConvVAE"),
    "c5-leaky": say("the article's ConvVAE with LeakyReLU"),
    "sharp": say("the sharp network"),
    "sharp-60": say("the sharp network, larger and longer, \u03b2 = 1/4, mirrored images"),
    "short": say("the sharp network, short"),
    "short-fixed": say("short, \u03c3\u00b2 = 1/2"),
    "short-vector": say("short, a vector as code"),
    "short-no-blocks": say("short, no residual blocks"),
    "short-no-shortcut": say("short, no linear shortcut"),
}
#: What each prior is called.
PRIORS = {"mixture": say("a mixture of Gaussians for each class"), "flow_matching": say("flow matching")}
#: What each set of images is called in the table of samples.
SETS = {
    "floor": say("training images"),
    "reconstructions": say("reconstructions of test images"),
    "ppca": say("samples of pPCA"),
    "gaussians": say("a Gaussian of the pixels for each class"),
    "c1": say("the article's MLP, z ~ N(0, I)"),
    "c4": say("the article's ConvVAE, z ~ N(0, I)"),
    "c5-leaky": say("the article's LeakyReLU, z ~ N(0, I)"),
    "own": say("here, z ~ N(0, I)"),
    "mixture": say("here, a mixture for each class"),
    "flow": say("here, flow matching, no class asked"),
    "flow-class": say("here, flow matching, by class"),
}

REFERENCES = (
    "Kingma and Welling: Auto-Encoding Variational Bayes. ICLR 2014. arXiv:1312.6114",
    "Rybkin, Daniilidis and Levine: Simple and effective VAE training with calibrated decoders. ICML 2021. "
    "arXiv:2006.13202",
    "Tipping and Bishop: Probabilistic principal component analysis. JRSS B 1999. doi:10.1111/1467-9868.00196",
    "Lipman, Chen, Ben-Hamu, Nickel and Le: Flow matching for generative modeling. ICLR 2023. arXiv:2210.02747",
    "Ho and Salimans: Classifier-free diffusion guidance. 2022. arXiv:2207.12598",
    "Naeem, Oh, Uh, Choi and Yoo: Reliable fidelity and diversity metrics for generative models. ICML 2020. "
    "arXiv:2002.09797",
    "Meehan, Chaudhuri and Dasgupta: A non-parametric test to detect data-copying in generative models. AISTATS 2020. "
    "arXiv:2004.05675",
)


def change(found: Found, before: str, after: str, metric: str, digits: int) -> str:
    """A metric of two runs, with an arrow between."""
    first, second = (found["runs"][name][metric]["value"] for name in (before, after))
    return f"{number(first, digits)} \u2192 {number(second, digits)}"


def summary(found: Found) -> list[tuple[str, str, str]]:
    """A label, a number and a remark a line."""
    main = found["runs"]["sharp"]
    lines: list[tuple[str, str, str]] = [
        (
            say("PSNR of the reconstructions"),
            say("{value} dB", value=number(main["psnr"]["value"])),
            say(
                "test images, z = \u03bc, n = {n}; {latents} latents, {images} images seen",
                n=f"{main['psnr']['n']:,}",
                latents=main["active_units"]["of"],
                images=f"{main['images']:,}",
            ),
        )
    ]
    if "sharp-60" in found["runs"]:
        longer = found["runs"]["sharp-60"]
        lines.append((
            say("PSNR of the larger network"),
            say("{value} dB", value=number(longer["psnr"]["value"])),
            say(
                "as many latents, {images} images seen; bits/dim: {change}",
                images=f"{longer['images']:,}",
                change=change(found, "sharp", "sharp-60", "bits_per_dim", 3),
            ),
        ))
    if "c4" in found["runs"]:
        article = found["runs"]["c4"]
        lines.append((
            say("Against the article's ConvVAE"),
            say("{value} dB", value=signed(main["psnr"]["value"] - article["psnr"]["value"], 1)),
            say(
                "PSNR on the same {n} test images; bits/dim, \u03c3 set on the training images: {change}",
                n=f"{main['psnr']['n']:,}",
                change=change(found, "c4", "sharp", "bits_per_dim_calibrated", 2),
            ),
        ))
    row = samples_of(found).get("flow-class")
    if row is not None and "class_accuracy" in row:
        lines.append((
            say("Samples that our classifier takes for the class asked for"),
            say("{value} %", value=number(100 * row["class_accuracy"]["value"], 1)),
            say("flow matching, by class, n = {n}", n=f"{row['n']:,}"),
        ))
    return lines


def why(found: Found) -> list[str]:
    """Why the article's pictures were blurred and these are not, in the numbers of this page."""
    main, total = found["runs"]["sharp"], f"{found['dimensions']:,}"
    told: list[str] = [
        say(
            "A loss of squared error plus KL is a Gaussian with \u03c3\u00b2 = 1/2. A latent number pays for itself only if "
            "it explains more variance than \u03c3\u00b2, and of {total} eigenvalues of the covariance of these images "
            "{count} exceed 1/2. What is not in the code cannot be in the picture.",
            total=total,
            count=above(found, VARIANCE),
        )
    ]
    if "c4" in found["runs"]:
        article = found["runs"]["c4"]
        told.append(
            say(
                "The article's ConvVAE, trained again with that loss: {directions} active directions of {of}, a rate of "
                "{rate} nats per image, {psnr} dB.",
                directions=article["directions"]["value"],
                of=article["directions"]["of"],
                rate=number(article["kl"]["value"], 1),
                psnr=number(article["psnr"]["value"]),
            )
        )
    if main["sigma"] is not None:
        told.append(
            say(
                "The sharp network learns its \u03c3\u00b2 with the rest: {variance}. {count} eigenvalues exceed that, and its "
                "code has {latents} numbers. It spends {rate} nats on {directions} active directions and reaches {psnr} dB.",
                variance=f"{main['sigma'] ** 2:.4g}",
                count=above(found, main["sigma"] ** 2),
                latents=main["active_units"]["of"],
                rate=number(main["kl"]["value"], 1),
                directions=main["directions"]["value"],
                psnr=number(main["psnr"]["value"]),
            )
        )
    told.append(
        say(
            "Samples are another matter: what is drawn from N(0, I) need not look like what images are encoded to, and the "
            "table of samples measures how far it does not. The other priors are fitted to the codes afterwards, the networks "
            "left as they are."
        )
    )
    return told


def distance(found: Found) -> list[str]:
    """How far the run with the fewest bits is from the pPCA of its size, and from the Gaussian with the full covariance; what
    a mixture as prior is worth in bits."""
    name = min(found["runs"], key=lambda run: found["runs"][run]["bits_per_dim"]["value"])
    bits, line, full = found["runs"][name]["bits_per_dim"]["value"], rival(found), full_covariance(found)
    told: list[str] = []
    if line is not None and full is not None:
        told.append(
            say(
                "The fewest bits here: {name}. Against pPCA with {latents} latents: {first} bits/dim; against the Gaussian "
                "with the full covariance: {second} bits/dim. Below 0 is better.",
                name=NAMES[name],
                latents=line["latent"],
                first=signed(bits - line["bits_per_dim"]),
                second=signed(bits - full["bits_per_dim"]),
            )
        )
    if "gain" in (fit := found["priors"].get("mixture", {})):
        told.append(
            say(
                "With the mixture in the place of N(0, I) the rate of the sharp network falls by {gain} \u00b1 {error} nats per "
                "image (n = {n}), which is {bits} bits/dim.",
                gain=number(fit["gain"]["value"], 1),
                error=number(fit["gain"]["se"], 1),
                n=f"{fit['gain']['n']:,}",
                bits=number(fit["gain"]["value"] / (found["dimensions"] * math.log(2)), 3),
            )
        )
    return told


def reading(found: Found) -> list[str]:
    """Which numbers may be compared with which, one line each."""
    n = found["samples"]["about"]["n"]
    return [
        say(
            "Bits/dim score x = (k + u)/256 with u uniform: a bound for the networks, exact for the models in closed form. "
            "All of them are densities of one family, Gaussians with one \u03c3; another family would stand in a table "
            "of its own."
        ),
        say(
            "PSNR, SSIM, MSE and all pictures of reconstructions take z = \u03bc; the plane of rate and distortion draws z. PSNR "
            "is that of the mean error over all pixels of all images."
        ),
        say(
            "Errors are one standard error over images, or that of the table of samples. Each row is one training run: "
            "another seed would differ by more."
        ),
        *_times(found),
        say(
            "All sets of the table of samples have n = {n} images. Their features are of a small classifier that was trained "
            "on the training images: the distances are no FID, and another n gives other numbers.",
            n=f"{n:,}",
        ),
    ]


def _times(found: Found) -> list[str]:
    """Whose wall times these are."""
    told: list[str] = [
        say(
            "Wall times are of this machine, with as many threads as stands below; runs of one thread were trained side by "
            "side. Images seen is what can be compared between machines."
        )
    ]
    if "pretrained" in found:
        about = found["pretrained"]
        told += [
            say(
                "The sharp network and its {prior} come with the package, in half precision: their wall times are of the "
                "machine that trained them ({processor}, {cores} cores; {seconds} s and {fitted} s).",
                prior=PRIORS[name],
                processor=about["machine"]["processor"],
                cores=about["machine"]["cores"],
                seconds=number(about["seconds"], 0),
                fitted=number(prior["seconds"], 0),
            )
            for name, prior in about["priors"].items()
        ]
    return told


def warning(found: Found) -> str | None:
    """What has to be known before a number is read: that this is no whole chapter."""
    plan = found.get("plan", "normal")
    if plan == "smoke":
        return say(
            "This is a smoke run: a few steps of training on {data} images made in code. Its numbers and pictures mean nothing.",
            data=found["data"],
        )
    if plan == "quick":
        return say(
            "This is the quick plan: fewer epochs, no ablation, and {n} images in each set of the table of samples.",
            n=f"{found['samples']['about']['n']:,}",
        )
    return None
