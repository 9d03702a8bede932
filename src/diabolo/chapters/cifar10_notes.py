"""The words of the CIFAR-10 chapter: pure functions of measured numbers, each written so that it says the opposite where the
numbers do, and says what is missing where a run was not made. `found` is what `cifar10_numbers.gathered` returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diabolo.chapters.cifar10_article import (
    ARTICLE,
    ARTICLE_DIMENSIONS,
    CONTROL,
    FIXED,
    NAMES,
    dropped_constant,
)
from diabolo.chapters.cifar10_claims import SIGMAS, plus
from diabolo.chapters.cifar10_numbers import best, line
from diabolo.chapters.cifar10_words import above, epochs
from diabolo.language import joined, say
from diabolo.report import Note
from diabolo.tables import number, signed

Found = Mapping[str, Any]

REFERENCES = (
    "Kingma and Welling: Auto-Encoding Variational Bayes. ICLR 2014. arXiv:1312.6114",
    "Tipping and Bishop: Probabilistic principal component analysis. JRSS B 1999. doi:10.1111/1467-9868.00196",
    "Lucas, Tucker, Grosse and Norouzi: Don't blame the ELBO! A linear VAE perspective on posterior collapse. "
    "NeurIPS 2019. arXiv:1911.02469",
    "Rybkin, Daniilidis and Levine: Simple and effective VAE training with calibrated decoders. ICML 2021. "
    "arXiv:2006.13202",
    "Theis, van den Oord and Bethge: A note on the evaluation of generative models. ICLR 2016. arXiv:1511.01844",
    "Burda, Grosse and Salakhutdinov: Importance Weighted Autoencoders. ICLR 2016. arXiv:1509.00519",
    "Cover and Thomas: Elements of Information Theory, theorem 10.3.3 (reverse water-filling). 2006. "
    "doi:10.1002/047174882X",
    "Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling: Improving variational inference with inverse "
    "autoregressive flow. NeurIPS 2016. arXiv:1606.04934",
    "Child: Very deep VAEs generalize autoregressive models and can outperform them on images. ICLR 2021. "
    "arXiv:2011.10650",
    "Ghosh, Sajjadi, Vergari, Black and Scholkopf: From variational to deterministic autoencoders. ICLR 2020. "
    "arXiv:1903.12436",
)


# ------------------------------------------------------------------------------------------------ notes
def notes(found: Found) -> list[Note]:
    """The article's errors and gaps that concern this chapter."""
    return [
        _colour(found),
        _constant(found),
        _snow(found),
        _gradient(found),
        _code(found),
        _numbers(),
        _relations(found),
        _others(found),
    ]


def _colour(found: Found) -> Note:
    return Note(
        10,
        say("Binary cross-entropy is replaced by squared error because the images have colours."),
        _absent(found, ("c4", "c4-optimal"))
        if "c4" not in found["paired"]
        else say(
            "The ConvVAE with squared error: {before} bits/dim. The same with \u03c3 at its optimum, another "
            "likelihood of the same colours: {after}.",
            before=plus(found["runs"]["c4"]["bits_per_dim"], 4),
            after=plus(found["runs"]["c4-optimal"]["bits_per_dim"], 4),
        ),
        say(
            "Colour does not force it: cross-entropy runs on RGB values in [0, 1] as well. What has to be chosen is "
            "the likelihood p(x|z), with its scale."
        ),
    )


def _constant(found: Found) -> Note:
    constant = dropped_constant(ARTICLE_DIMENSIONS)
    first, second = ARTICLE["c3"], ARTICLE["c4"]
    own = [
        say(
            "{name}: \u2212(SSE + KL) = {article}, ELBO = {elbo} nats",
            name=NAMES[name],
            article=plus(found["runs"][name]["article"], 2),
            elbo=plus(found["runs"][name]["elbo"], 2),
        )
        for name in ARTICLE
        if name in found["runs"]
    ]
    return Note(
        11,
        say(
            "The loss is SSE + KL, and minus its mean is called the ELBO: {first}, then {second}.",
            first=number(first, 4),
            second=number(second, 4),
        ),
        joined("{before}; {after}", own) if own else _absent(found, tuple(ARTICLE)),
        say(
            "That is a Gaussian decoder whose \u03c3\u00b2 is 1/2, without its constant of {constant} nats. With it "
            "the ELBOs are {first} and {second}. State the likelihood, keep the constant, report bits/dim, and let "
            "\u03c3 be learned.",
            constant=number(-constant),
            first=number(first - constant),
            second=number(second - constant),
        ),
    )


def _snow(found: Found) -> Note:
    runs = found["runs"]
    units = [
        say(
            "{name}: {active} of {total}, in {directions} directions",
            name=NAMES[name],
            active=runs[name]["active_units"]["value"],
            directions=runs[name]["directions"]["value"],
            total=runs[name]["active_units"]["of"],
        )
        for name in (*FIXED, "c2-optimal", "c4-optimal")
        if name in runs
    ]
    return Note(
        13,
        say('Samples are grey and look like "snow" because there are too few latent and hidden units.'),
        say(
            "Active units: {units}. Eigenvalues above 1/2: {count}. Figure 5-2b shows samples as the decoder paints "
            "them, and with the noise that \u03c3\u00b2 = 1/2 stands for.",
            units=joined("{before}; {after}", units),
            count=above(found),
        )
        if units
        else _absent(found, FIXED),
        say(
            "Capacity matters, but \u03c3\u00b2 decides how much of it is used. And snow is not what a decoder's mean "
            "looks like, which is smooth: it points to noise of variance 1/2 added to samples, to targets outside of "
            "what a sigmoid can reach, or to too little training. Keep pixels in [0, 1] and show decoder means."
        ),
    )


def _gradient(found: Found) -> Note:
    told = [*_activation(found), *_darkness(found)]
    return Note(
        15,
        say("LeakyReLU gives the squared error a gradient for negative inputs, and so the loss is improved."),
        joined("{before} {after}", told) if told else _absent(found, ("c5-leaky", CONTROL)),
        say(
            "The derivative of (y \u2212 x)\u00b2 by the reconstruction y is 2(y \u2212 x), whatever the sign: no "
            "gradient is missing. LeakyReLU keeps one in units that are off, which is another matter. Read literally, "
            "with the residual through LeakyReLU(0.2), the loss counts too bright with weight 1 and too dark with "
            "weight 0.04; its optimum is the 0.0385 conditional expectile, and images come out too dark. What "
            "improves the loss is its \u03c3."
        ),
    )


def _activation(found: Found) -> list[str]:
    """What LeakyReLU changes in place of ReLU, under each loss."""
    losses = {"activation": say("squared error"), "activation-optimal": say("optimal \u03c3")}
    return [
        say(
            "LeakyReLU for ReLU, {loss}: ELBO {change} nats, {verdict}.",
            loss=loss,
            change=f"{signed(pair['value'])} \u00b1 {number(pair['se'])}",
            verdict=_verdict(pair, say("better"), say("worse")),
        )
        for key, loss in losses.items()
        if (pair := found["paired"].get(key, {}).get("elbo")) is not None
    ]


def _darkness(found: Found) -> list[str]:
    return [
        say(
            "Reconstructions of {name} are {verdict}: mean pixel value {change} against the {n} images shown.",
            name=NAMES[name],
            verdict=_verdict(change, say("brighter"), say("darker")),
            change=f"{signed(change['value'], 3)} \u00b1 {number(change['se'], 3)}",
            n=change["n"],
        )
        for name, change in found["brightness"].items()
    ]


def _verdict(change: Mapping[str, Any], more: str, less: str) -> str:
    """What a difference says that exceeds its standard error enough, and that it says nothing where it does not."""
    if abs(change["value"]) <= SIGMAS * change["se"]:
        return say("no clear difference")
    return more if change["value"] > 0 else less


def _code(found: Found) -> Note:
    counts = found.get("parameters", {})
    told = [say("{name}: {count}", name=NAMES[name], count=f"{counts[name]:,}") for name in FIXED if name in counts]
    return Note(
        16,
        say("Of the ConvVAE the encoder's layers are shown; its class never calls the constructor of nn.Module."),
        say(
            "The completed networks have these numbers of parameters: {counts}.",
            counts=joined("{before}; {after}", told),
        )
        if told
        else say("Nothing to measure."),
        say(
            "Without that call, assigning a layer raises AttributeError. The decoder is only said to mirror the "
            "encoder, and the two heads are missing; here four transposed convolutions undo the four strides, and one "
            "linear layer each gives mean and log-variance."
        ),
    )


def _numbers() -> Note:
    return Note(
        17,
        say("Figure numbers 5-2 and 5-4 are each used twice."),
        say("Nothing to measure."),
        say("Here 5-2a is the PCA and 5-2b the samples, 5-4a the wide MLP and 5-4b the ConvVAE."),
    )


def _relations(found: Found) -> Note:
    gaussian = line(found["linear"]["dequantized"], None)
    ours = found["runs"][best(found)]["bits_per_dim_calibrated"]
    told = []
    if gaussian is not None:
        told.append(
            say(
                "One Gaussian with full covariance, on flattened images: {gaussian} bits/dim; the best network here, "
                "{name}: {ours}, {verdict}.",
                gaussian=number(gaussian["bits_per_dim"], 4),
                name=NAMES[best(found)],
                ours=plus(ours, 4),
                verdict=say("better") if ours["value"] < gaussian["bits_per_dim"] else say("worse"),
            )
        )
    told += [
        say(
            "Pixels permuted, {name}: ELBO {change} nats.",
            name=NAMES[base],
            change=signed(found["runs"][f"{base}-permuted"]["elbo"]["value"] - found["runs"][base]["elbo"]["value"]),
        )
        for base in ("c2-optimal", "c4-optimal")
        if base in found["runs"] and f"{base}-permuted" in found["runs"]
    ]
    return Note(
        20,
        say("Convolution helps because flattening an image loses the relations between its pixels."),
        joined("{before} {after}", told) if told else say("Nothing to measure."),
        say(
            "A dense layer sees every pair of pixels, and a Gaussian on flattened images uses them all. What "
            "flattening loses is the prior knowledge of locality: which pixels are neighbours. Permuting them in all "
            "images takes that away, and nothing else."
        ),
    )


def _others(found: Found) -> Note:
    name = best(found)
    row = found["runs"][name]
    return Note(
        21,
        say("Others, on GitHub and arXiv, got no further than blur."),
        say(
            "The best network here, {name}: {bits} bits/dim calibrated, {psnr} dB, after {epochs}.",
            name=NAMES[name],
            bits=plus(row["bits_per_dim_calibrated"], 4),
            psnr=plus(row["psnr"], 2),
            epochs=epochs(found),
        ),
        say("They did; three of them, and what it cost, stand at the end of this page."),
    )


def _absent(found: Found, names: Sequence[str]) -> str:
    """That runs were not made."""
    absent = [NAMES[name] for name in names if name not in found["runs"]]
    return say("Not measured: {names} not trained here.", names=joined("{before}, {after}", absent))
