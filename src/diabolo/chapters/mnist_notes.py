"""The notes of the MNIST chapter: what the article says, what was measured, why; pure functions of measured numbers.

No sentence states a result: each is written from the evaluations, and says the opposite where the numbers do.
Each is said by its template, so that a report in another language can say it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diabolo.chapters.mnist_article import PUBLISHED
from diabolo.language import joined, say
from diabolo.recorded import shown_k
from diabolo.report import Note
from diabolo.tables import number, signed

Evaluation = Mapping[str, Any]


def parameters(config: Mapping[str, Any], dimensions: int = 784) -> int:
    """Weights and biases of an MLP-VAE with two heads (mean, log-variance), each a dense layer of its own."""
    model = config["model"]
    d = int(model["latent"])

    def trunk(size: int, part: Mapping[str, Any]) -> int:
        h, depth = int(part["width"]), int(part["depth"])
        return size * h + h + (depth - 1) * (h * h + h)

    into, out = model["encoder"], model["decoder"]
    heads = 2 * (int(into["width"]) + 1) * d
    return trunk(dimensions, into) + heads + trunk(d, out) + (int(out["width"]) + 1) * dimensions


def value(evaluation: Evaluation, metric: str) -> float:
    """A metric's value; "gap" is log p(x) - ELBO on the images of the importance sampling."""
    return float(evaluation["log_p"]["gap"] if metric == "gap" else evaluation[metric]["value"])


def nats(evaluation: Evaluation, metric: str) -> str:
    """A metric's value and its standard error, as text."""
    source = evaluation["log_p" if metric == "gap" else metric]
    return f"{number(value(evaluation, metric))} \u00b1 {number(source['se'])}"


def each(evaluations: Sequence[Evaluation], metric: str, digits: int = 2) -> str:
    """A metric's value of one model after the other, as text."""
    return " / ".join(number(value(e, metric), digits) for e in evaluations)


# --------------------------------------------------------------------------------------------------------------- notes


def notes(
    grey: Sequence[Evaluation], binarized: Sequence[Evaluation], configs: Sequence[Mapping[str, Any]]
) -> list[Note]:
    """The errors and gaps of the article that concern this chapter; models 1, 2, 3 in order."""
    return [
        _wrong_sign(grey[0]),
        _reconstruction_error(grey[0]),
        _standard_deviation(),
        _tighter(grey),
        _name(),
        _functions(),
        _grey_levels(grey[0], binarized[0]),
        _ablations(grey),
        _estimate(grey[0]),
        _averaging(grey[0]),
        _widths(configs),
        _code_gaps(configs),
        _not_stated(grey[0], configs[0]),
        _preprints(),
    ]


def _wrong_sign(e: Evaluation) -> Note:
    added = value(e, "elbo") + 2 * value(e, "kl")
    above = added > value(e, "log_p")
    return Note(
        1,
        say("Equation (2) adds the KL term."),
        say(
            "Model 1: KL = {kl} nats. Subtracted, the ELBO is {elbo}; added, it would be {added}: {verdict} ({log_p}).",
            kl=nats(e, "kl"),
            elbo=number(value(e, "elbo")),
            added=number(added),
            verdict=say("above log p(x), so it bounds nothing")
            if above
            else say("here still below log p(x), by luck only"),
            log_p=number(value(e, "log_p")),
        ),
        say(
            "ELBO = E[log p(x|z)] \u2212 KL(q(z|x) || p(z)). The article's code has it right: it minimises BCE + KL. "
            "See equation (2) and its test."
        ),
    )


def _reconstruction_error(e: Evaluation) -> Note:
    return Note(
        2,
        say("It calls E[log p(x|z)] the reconstruction error."),
        say(
            "Model 1: E[log p(x|z)] = {likelihood} nats; the error, called distortion here, is {distortion}.",
            likelihood=number(-value(e, "distortion")),
            distortion=nats(e, "distortion"),
        ),
        say("It is a log-likelihood, the negative of an error. BCE is minus that quantity."),
    )


def _standard_deviation() -> Note:
    return Note(
        3,
        say("\u03c3 in equation (3) is called a variance."),
        say("A sample's standard deviation is exp(logvar / 2): tests/test_mathematics.py::test_reparameterised_sd."),
        say(
            "\u03c3 multiplies a unit normal, so it is the standard deviation. Using exp(logvar) there is the bug to "
            "guard against."
        ),
    )


def _tighter(evaluations: Sequence[Evaluation]) -> Note:
    best = max(range(len(evaluations)), key=lambda i: value(evaluations[i], "elbo"))
    looser = [i for i, e in enumerate(evaluations) if value(e, "gap") < value(evaluations[best], "gap")]
    if looser:
        named = joined("{before} and {after}", [say("model {number}", number=i + 1) for i in looser])
        verdict = say(
            "Model {best} has the largest ELBO and yet a wider gap than {others}.", best=best + 1, others=named
        )
    else:
        verdict = say(
            "Here model {best} has both the largest ELBO and the smallest gap; nothing makes that so in general.",
            best=best + 1,
        )
    return Note(
        4,
        say("A larger ELBO means a smaller KL(q(z|x) || p(z|x))."),
        say(
            "ELBO {elbos}, gap {gaps} nats (models 1 / 2 / 3). {verdict}",
            elbos=each(evaluations, "elbo"),
            gaps=each(evaluations, "gap"),
            verdict=verdict,
        ),
        say(
            "log p(x) = ELBO + KL(q(z|x) || p(z|x)). That conclusion holds only while the decoder is fixed; training "
            "moves log p(x) too."
        ),
    )


def _name() -> Note:
    return Note(
        5,
        say('VAE is rendered as something like "variable encoder".'),
        say("Nothing to measure."),
        say(
            "It is the variational autoencoder: named after variational inference, the choice of q(z|x) by an "
            "optimisation."
        ),
    )


def _functions() -> Note:
    return Note(
        6,
        say("The codes of denoising and contractive autoencoders are fixed parameters."),
        say("Nothing to measure in this chapter, which trains neither."),
        say(
            "They are deterministic functions of the input; only the weights are fixed after training. "
            "What they lack is a density on the code, hence a principled way to sample."
        ),
    )


def _grey_levels(grey: Evaluation, binarized: Evaluation) -> Note:
    floor = grey["about"]["entropy_floor"]
    measured = say(
        "Trained and evaluated on binarised images, the same network has ELBO {elbo} and log p(x) {log_p}, which are "
        "real likelihoods.",
        elbo=nats(binarized, "elbo"),
        log_p=nats(binarized, "log_p"),
    )
    if floor is not None:
        measured = say("{sentence} {next}", sentence=_above_the_floor(-value(grey, "elbo"), floor), next=measured)
    return Note(
        7,
        say("MNIST is grey-level; then BCE is justified because MNIST is binarised."),
        measured,
        say(
            "Raw MNIST is grey. BCE on grey levels is a legal loss but not a normalised density (arXiv:1907.06845), so "
            "its values cannot be set beside published ones for binarised MNIST. Both conventions are shown here, in "
            "tables of their own."
        ),
    )


def _above_the_floor(minus_elbo: float, floor: float) -> str:
    return say(
        "Even a perfect reconstruction of the grey test images costs {floor} nats, so the grey \u2212ELBO of Model 1, "
        "{elbo}, stands {excess} above its floor.",
        floor=number(floor),
        elbo=number(minus_elbo),
        excess=number(minus_elbo - floor),
    )


def _ablations(evaluations: Sequence[Evaluation]) -> Note:
    own = [{metric: value(e, metric) for metric in ("elbo", "log_p", "mse_mean")} for e in evaluations]
    return Note(
        8,
        say("With a smaller network all three indicators rise, but not noticeably."),
        say(
            "Change against Model 1, here: {own}. In the article's own table: {theirs}.",
            own=_changes(own),
            theirs=_changes(list(PUBLISHED.values())),
        ),
        say(
            "A falling ELBO and a falling log p(x) are worse, and so is a rising MSE: in the article's table all three "
            "get worse, by many nats. That small grey images need little capacity does not follow."
        ),
    )


def _changes(models: Sequence[Mapping[str, float]]) -> str:
    """What each model changes of the first: nats, nats, and the MSE in per cent."""
    first = models[0]
    return joined(
        "{before}; {after}",
        [
            say(
                "model {number}: ELBO {elbo}, log p(x) {log_p}, MSE {mse} %",
                number=i + 1,
                elbo=signed(m["elbo"] - first["elbo"]),
                log_p=signed(m["log_p"] - first["log_p"]),
                mse=signed(100 * (m["mse_mean"] / first["mse_mean"] - 1), 0),
            )
            for i, m in enumerate(models)
            if i
        ],
    )


def _estimate(e: Evaluation) -> Note:
    points = [f"{number(p['value'])} (K = {p['k']:,})" for p in e["log_p_curve"]["points"]]
    return Note(
        9,
        say("The marginal likelihood's estimate is called MLE; the number of samples is not given."),
        say(
            "Model 1 on {n} images: {curve}. Table 4-1 uses K = {k}.",
            n=f"{e['log_p_curve']['n']:,}",
            curve=joined("{before}, {after}", points),
            k=shown_k(e["log_p"]["k"]),
        ),
        say(
            "MLE means maximum-likelihood estimation. This is log p(x) by importance sampling: a lower bound in "
            "expectation that rises with K, so a value without its K says little."
        ),
    )


def _averaging(e: Evaluation) -> Note:
    distortion, kl = value(e, "distortion"), value(e, "kl")
    return Note(
        12,
        say("It does not say how the loss is averaged."),
        say(
            "Summed over 784 pixels and averaged over images: distortion {distortion}, KL {kl} nats per image. "
            "Averaged over pixels as well, the distortion would be {per_pixel} beside the same KL.",
            distortion=number(distortion),
            kl=number(kl),
            per_pixel=number(distortion / 784, 4),
        ),
        say(
            "A mean over pixels beside an unscaled KL multiplies the weight of the KL by 784 and collapses the "
            "posterior."
        ),
    )


def _widths(configs: Sequence[Mapping[str, Any]]) -> Note:
    described = [
        say(
            "model {number}: {depth} hidden layers of width {width}, latent dimension {latent}",
            number=i + 1,
            depth=c["model"]["encoder"]["depth"],
            width=c["model"]["encoder"]["width"],
            latent=c["model"]["latent"],
        )
        for i, c in enumerate(configs)
    ]
    return Note(
        14,
        say('"Layer count" 200, 10 and so on.'),
        say("{sentence}.", sentence=joined("{before}; {after}", described)),
        say(
            "These numbers are the hidden width and the latent dimension; the number of layers is the same in all of "
            "its networks."
        ),
    )


def _code_gaps(configs: Sequence[Mapping[str, Any]]) -> Note:
    return Note(
        16,
        say("Only the constructor of the MLP class is shown."),
        say(
            "The complete networks have {counts} parameters (models 1 / 2 / 3, 784 inputs).",
            counts=" / ".join(f"{parameters(c):,}" for c in configs),
        ),
        say(
            "Encoding, reparameterisation and the forward pass had to be filled in; equations (1) to (3) leave one way "
            "to do it."
        ),
    )


def _not_stated(e: Evaluation, config: Mapping[str, Any]) -> Note:
    train, importance = config.get("train", {}), e["log_p"]
    return Note(
        18,
        say(
            "Not stated: batch size, learning rate, initialisation, seed, splits, K, which z the MSE uses, what the "
            "PCA was fitted on."
        ),
        say(
            "Here: batch {batch}, Adam with learning rate {lr}, PyTorch's initialisation, seed {seed}, {epochs} "
            "epochs, all numbers on the {split} split, K = {k} on {n} images, MSE both at z = \u03bc and with z "
            "sampled, PCA of the test images' posterior means, curves of train and test, grids of 8 by 8. {nearer}",
            batch=train.get("batch", "?"),
            lr=train.get("lr", "?"),
            seed=config.get("seed", "?"),
            epochs=train.get("epochs", "?"),
            split=e["about"]["split"],
            k=shown_k(importance["k"]),
            n=f"{importance['n']:,}",
            nearer=_which_mse(e),
        ),
        say("What is not stated was set to common defaults, without a search, and is recorded below."),
    )


def _which_mse(e: Evaluation) -> str:
    article = PUBLISHED["Model 1"]["mse_mean"]
    at_mean, sampled = value(e, "mse_mean"), value(e, "mse_sample")
    return say(
        "The article's MSE of Model 1, {article}, is nearer to ours with {nearer} ({at_mean} at z = \u03bc, {sampled} "
        "with z sampled).",
        article=number(article, 4),
        nearer=say("z sampled") if abs(sampled - article) < abs(at_mean - article) else "z = \u03bc",
        at_mean=number(at_mean, 4),
        sampled=number(sampled, 4),
    )


def _preprints() -> Note:
    return Note(
        19,
        say("References [1] and [3] are cited as preprints."),
        say("Nothing to measure."),
        say("They appeared at ICLR 2014 and EMNLP 2017 (pp. 627-637); see the references at the end."),
    )
