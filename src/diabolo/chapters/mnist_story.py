"""The words of the MNIST chapter around its notes: the summary, what may be compared, why the article differs."""

from __future__ import annotations

from collections.abc import Sequence

from diabolo.chapters.mnist_article import FIGURES, MACHINE, PUBLISHED, REFERENCES
from diabolo.chapters.mnist_notes import Evaluation, each, nats, notes, value
from diabolo.language import joined, say
from diabolo.recorded import shown_k
from diabolo.report import Convention, Story
from diabolo.tables import REQUIRED, Reading, number, read, signed


def causes(grey: Sequence[Evaluation]) -> list[str]:
    """What may explain the difference to the article's models 2 and 3; likely causes, none of them proven."""
    article = list(PUBLISHED.values())
    apart = [value(e, "elbo") - a["elbo"] for e, a in zip(grey, article)]
    return [
        *(
            say(
                "Model {number}: ELBO {elbo} here, {article} in the article: {change} nats, {verdict} here. "
                "(Model 1: {first}.)",
                number=i + 1,
                elbo=number(value(grey[i], "elbo")),
                article=number(article[i]["elbo"], 3),
                change=signed(apart[i]),
                verdict=say("better") if apart[i] > 0 else say("worse"),
                first=signed(apart[0]),
            )
            for i in range(1, len(grey))
        ),
        say(
            "The article's gaps, log p(x) \u2212 ELBO, are {article} nats; ours are {ours} (K = {k}). "
            "A wider gap is the mark of an encoder that is not yet trained out, or of a larger K.",
            article=" / ".join(number(a["gap"]) for a in article),
            ours=each(grey, "gap"),
            k=shown_k(grey[0]["log_p"]["k"]),
        ),
        say(
            "Likely: its models 2 and 3 saw fewer updates (fewer epochs, or a larger batch), since ELBO, log p(x) and "
            "MSE lag together."
        )
        if min(apart[1:]) > 0
        else say(
            "Not every model is better here, so fewer updates in the article cannot explain the whole difference."
        ),
        say(
            "Possible: another learning rate or initialisation, an average of losses over batches that is not per "
            "image, numbers from different splits, or a single unlucky seed. The article states none of these."
        ),
        say(
            "None of this is proven. The settings here are common defaults; nothing was tuned towards the article's "
            "numbers."
        ),
    ]


def reading(grey: Sequence[Evaluation], binarized: Sequence[Evaluation]) -> list[str]:
    """Which numbers may be compared with which, one line each."""
    floor = grey[0]["about"]["entropy_floor"]
    against_grey = say(
        "Grey against grey: yes, and with the article, which uses this convention. The grey loss is not a normalised "
        "density, so its ELBO and log p(x) are no likelihoods of grey images."
    )
    if floor is not None:
        own = say("Their floor is {floor} nats: what a perfect reconstruction would cost.", floor=number(floor))
        against_grey = say("{sentence} {next}", sentence=against_grey, next=own)
    return [
        against_grey,
        say(
            "Grey against published binarised MNIST: no. One thing may be said: for randomly binarised images the grey "
            "ELBO and the grey log p(x) are lower bounds on the expected log-likelihood."
        ),
        say(
            "Binarised against published numbers: yes, with those for dynamically binarised MNIST, at equal training "
            "effort: these networks are trained for few epochs. Numbers for the usual fixed binarised set differ by 1 "
            "to 3 nats in the same model."
        ),
        say("Grey against binarised: never in one table."),
        say("ELBO: z is always sampled. With z = \u03bc it would look better and bound nothing."),
        say(
            "log p(x): importance sampling with K = {grey} (binarised: K = {binarised}), a lower bound in expectation; "
            "compare only equal K.",
            grey=shown_k(grey[0]["log_p"]["k"]),
            binarised=shown_k(binarized[0]["log_p"]["k"]),
        ),
        say(
            "Errors: the sampling error over images is far larger than the Monte-Carlo error over z. Models are "
            "compared by paired differences on the same images, where most of the sampling error cancels."
        ),
    ]


def _unit(evaluation: Evaluation) -> str:
    return say("nats per image") if evaluation["about"]["normalised"] else say("unnormalised, nats per image")


def summary(grey: Sequence[Evaluation], binarized: Sequence[Evaluation]) -> list[tuple[str, str, str]]:
    """The chapter in four lines: a label, its number, a remark."""
    article = list(PUBLISHED.values())
    apart = [signed(value(e, "elbo") - a["elbo"]) for e, a in zip(grey, article)]
    return [
        (
            say("Model 1, grey levels: ELBO"),
            nats(grey[0], "elbo"),
            say(
                "{unit}; {change} against the article's {article}",
                unit=_unit(grey[0]),
                change=apart[0],
                article=number(article[0]["elbo"], 3),
            ),
        ),
        (
            say("Models 2 and 3, grey levels: ELBO"),
            each(grey[1:], "elbo"),
            say(
                "{changes} against the article; order by ELBO here {order}, in the article 1 > 3 > 2",
                changes=joined("{before} and {after}", apart[1:]),
                order=" > ".join(str(i + 1) for i in sorted(range(len(grey)), key=lambda i: -value(grey[i], "elbo"))),
            ),
        ),
        (
            say("Model 1, binarised: log p(x)"),
            nats(binarized[0], "log_p"),
            say(
                "nats per image, K = {k}; ELBO {elbo}. Comparable with published numbers",
                k=shown_k(binarized[0]["log_p"]["k"]),
                elbo=nats(binarized[0], "elbo"),
            ),
        ),
        (
            say("Active latent dimensions, grey"),
            each(grey, "active_units", 0),
            say("models 1 / 2 / 3; on binarised images {counts}", counts=each(binarized, "active_units", 0)),
        ),
    ]


def story(conventions: Sequence[Convention]) -> Story:
    """The words of the chapter for its two conventions, with keys "grey" and "binarized" and three models each.

    Raises:
        DataError: if a run has no evaluation.
    """
    found: dict[str, list[Reading]] = {c.key: [read(e.run, e.title, REQUIRED) for e in c.entries] for c in conventions}
    grey, binarized = ([r.evaluation for r in found[key]] for key in ("grey", "binarized"))
    return Story(
        title=say("Variational autoencoders on MNIST, reproduced"),
        lead=say(
            "Three fully connected VAEs from the article, trained and measured again: on grey levels, as the article "
            "did, and on binarised images, where the numbers are likelihoods."
        ),
        summary=summary(grey, binarized),
        reading=reading(grey, binarized),
        figures=FIGURES,
        equations="mnist_equations.html.j2",
        notes=notes(grey, binarized, [r.config for r in found["grey"]]),
        causes=causes(grey),
        machine=MACHINE,
        references=REFERENCES,
    )
