"""The four claims of the CIFAR-10 chapter: pure functions from measured numbers to verdicts, each by a rule that is printed.

`numbers` is what `cifar10_numbers.gathered` returns. Nothing is decided beforehand: a claim whose runs were not made is "not
tested", one of whose checks fails is "not supported".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diabolo.chapters.cifar10_article import (
    ARTICLE,
    ARTICLE_DIMENSIONS,
    FIXED,
    NAMES,
    UNIFORM,
    VARIANCE,
    density_bits,
    dropped_constant,
)
from diabolo.chapters.cifar10_numbers import line
from diabolo.language import joined, say
from diabolo.tables import number, signed

Numbers = Mapping[str, Any]
SUPPORTED, NOT_SUPPORTED, NOT_TESTED = "supported", "not supported", "not tested"

#: Standard errors that a difference has to exceed.
SIGMAS = 5
#: Bits per dimension by which "far below" uniform coding is meant.
FAR = 1.0
#: The factor within which a run's -(SSE + KL) has to meet the article's for its reading to be the article's.
NEAR = 2.0


@dataclass(frozen=True)
class Figure:
    """A number that a verdict rests on: what it is, its text, and whether the check on it holds (None: shown, not
    checked)."""

    label: str
    value: str
    holds: bool | None


@dataclass(frozen=True)
class Claim:
    """A claim, the rule that decides it, the verdict, what that means in plain words, and the figures behind it."""

    number: int
    title: str
    statement: str
    rule: str
    verdict: str
    sentence: str
    figures: Sequence[Figure]


def claims(numbers: Numbers) -> list[Claim]:
    """The four claims with their verdicts."""
    return [_constant(numbers), _variance(numbers), _optimum(numbers), _locality(numbers)]


@dataclass(frozen=True)
class Words:
    """How a claim is called and said, its rule, and what it means if it is supported or cannot be tested."""

    title: str
    statement: str
    rule: str
    supported: str
    untested: str


def decided(number: int, words: Words, figures: Sequence[Figure], tested: bool) -> Claim:
    """The verdict: every check has to hold; the sentence names those that do not."""
    failed = [say("{before}: {after}", before=f.label, after=f.value) for f in figures if f.holds is False]
    if not tested:
        verdict, sentence = NOT_TESTED, words.untested
    elif failed:
        verdict = NOT_SUPPORTED
        sentence = say("What does not hold here: {what}.", what=joined("{before}; {after}", failed))
    else:
        verdict, sentence = SUPPORTED, words.supported
    return Claim(number, words.title, words.statement, words.rule, verdict, sentence, tuple(figures))


def plus(entry: Mapping[str, Any], digits: int) -> str:
    """A value and its standard error as text."""
    return f"{number(entry['value'], digits)} \u00b1 {number(entry['se'], digits)}"


def surely_below(entry: Mapping[str, Any], limit: float) -> bool:
    """Whether a value lies below a limit by `SIGMAS` standard errors."""
    return bool(entry["value"] + SIGMAS * entry["se"] < limit)


def surely_above(entry: Mapping[str, Any], limit: float) -> bool:
    """Whether a value lies above a limit by `SIGMAS` standard errors."""
    return bool(entry["value"] - SIGMAS * entry["se"] > limit)


# ------------------------------------------------------------------------------------------------ 1: the dropped constant
def _constant(numbers: Numbers) -> Claim:
    constant = dropped_constant(ARTICLE_DIMENSIONS)
    dear = {name: density_bits(constant - value, ARTICLE_DIMENSIONS) for name, value in ARTICLE.items()}
    own = {name: numbers["runs"][name] for name in ARTICLE if name in numbers["runs"]}
    figures = [
        Figure(
            say("the article's {value}, with its constant", value=number(ARTICLE[name], 4)),
            say("{bits} bits/dim", bits=number(found, 3)),
            found > UNIFORM,
        )
        for name, found in dear.items()
    ]
    for name, run in own.items():
        ratio = run["article"]["value"] / ARTICLE[name]
        figures += [
            Figure(
                say("{name} here, \u2212(SSE + KL); article {value}", name=NAMES[name], value=number(ARTICLE[name], 4)),
                plus(run["article"], 2),
                1 / NEAR < ratio < NEAR,
            ),
            Figure(
                say("{name} here, bits/dim as trained", name=NAMES[name]),
                plus(run["bits_per_dim"], 4),
                surely_above(run["bits_per_dim"], UNIFORM),
            ),
        ]
    words = Words(
        title=say("A dropped constant hides a bad likelihood"),
        statement=say(
            "Read as \u2212(SSE + KL) per image with pixels in [0, 1], the article's {first} (no model named, "
            "presumably C3) and {second} (its ConvVAE) are a Gaussian with \u03c3\u00b2 = 1/2 whose constant, "
            "{constant} nats, was dropped: {first_bits} and {second_bits} bits/dim, worse than coding the pixels "
            "uniformly ({uniform}).",
            first=number(ARTICLE["c3"], 4),
            second=number(ARTICLE["c4"], 4),
            constant=number(constant),
            first_bits=number(dear["c3"], 3),
            second_bits=number(dear["c4"], 3),
            uniform=number(UNIFORM, 3),
        ),
        rule=say(
            "Supported if both numbers of the article exceed {uniform} bits/dim with the constant, and our runs C3 "
            "and C4, trained on that loss, come within a factor of {factor} of its \u2212(SSE + KL) and exceed "
            "{uniform} bits/dim by {sigmas} standard errors.",
            uniform=number(UNIFORM, 0),
            factor=number(NEAR, 0),
            sigmas=SIGMAS,
        ),
        supported=say(
            "Both networks of the article need more bits for an image than a file that stores every pixel as it is. "
            "The {nats} nats between them, its whole gain from convolutions, are {bits} bits/dim.",
            nats=number(ARTICLE["c4"] - ARTICLE["c3"]),
            bits=number(dear["c3"] - dear["c4"], 4),
        ),
        untested=say("Neither C3 nor C4 was trained, so only the arithmetic stands here."),
    )
    return decided(1, words, figures, bool(own))


# ------------------------------------------------------------------------------------------------ 2: what sigma^2 leaves room for
def _variance(numbers: Numbers) -> Claim:
    count = sum(value > VARIANCE for value in numbers["linear"]["eigenvalues"])
    made = {name: numbers["runs"][name] for name in FIXED if name in numbers["runs"]}
    score = _objective_of_pca(numbers)
    figures = [_room(numbers, count, made), *_used(made, count)]
    if score is not None:
        label = say(
            "pPCA with 20 latents: SSE + KL; article {first} and {second}",
            first=number(-ARTICLE["c3"], 4),
            second=number(-ARTICLE["c4"], 4),
        )
        figures.append(Figure(label, plus(score, 2), all(surely_below(score, -value) for value in ARTICLE.values())))
    figures += [
        Figure(say("{name} here: SSE + KL", name=NAMES[name]), plus(_minus(run["article"]), 2), None)
        for name, run in made.items()
    ]
    words = Words(
        title=say("\u03c3\u00b2 = 1/2 leaves room for few latents"),
        statement=say(
            "At \u03c3\u00b2 = 1/2 a linear model can use as many latents as the covariance has eigenvalues above "
            "1/2: {count} on this data, whatever the latent size. For the networks the measured active units decide. "
            "A closed-form pPCA with 20 latents scores {score} on the article's own objective: better than both of "
            "its networks.",
            count=count,
            score="?" if score is None else number(score["value"]),
        ),
        rule=say(
            "Supported if fewer eigenvalues than latents exceed 1/2, no network trained at \u03c3\u00b2 = 1/2 has "
            "more active units than that, and the pPCA's SSE + KL lies below both of the article's by {sigmas} "
            "standard errors.",
            sigmas=SIGMAS,
        ),
        supported=say(
            "A latent number costs nats, and at this \u03c3\u00b2 it pays only if it explains a variance above 1/2. "
            "{count} directions of these images do. More latents, wider layers or convolutions change little about "
            "that: they stay unused.",
            count=count,
        ),
        untested=say(
            "It needs a network trained at \u03c3\u00b2 = 1/2, and data that a pPCA with 20 latents can be fitted to."
        ),
    )
    return decided(2, words, figures, bool(made) and score is not None)


def _objective_of_pca(numbers: Numbers) -> dict[str, Any] | None:
    """SSE + KL of the pPCA with 20 latents; it is -log p(x) but for a constant, so it has the same error."""
    pca = line(numbers["linear"]["grid"], 20, fixed=True)
    return None if pca is None else {"value": pca["sse_and_kl"], "se": pca["nll_se"]}


def _room(numbers: Numbers, count: int, made: Mapping[str, Any]) -> Figure:
    largest = max((run["active_units"]["of"] for run in made.values()), default=0)
    label = say(
        "eigenvalues of the covariance above \u03c3\u00b2 = 1/2, of {total}", total=f"{numbers['dimensions']:,}"
    )
    return Figure(label, f"{count}", count < largest if made else None)


def _used(made: Mapping[str, Any], count: int) -> list[Figure]:
    """Units decide; directions, which a turned code does not multiply, are shown beside them."""
    units = [
        Figure(
            say("{name}: active units of {total}", name=NAMES[name], total=run["active_units"]["of"]),
            f"{run['active_units']['value']}",
            run["active_units"]["value"] <= count,
        )
        for name, run in made.items()
    ]
    directions = [
        Figure(
            say("{name}: active directions, the principal axes of the codes", name=NAMES[name]),
            f"{run['directions']['value']}",
            None,
        )
        for name, run in made.items()
    ]
    return [*units, *directions]


def _minus(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**entry, "value": -entry["value"]}


# ------------------------------------------------------------------------------------------------ 3: sigma at its optimum
def _optimum(numbers: Numbers) -> Claim:
    tested = [base for base in ("c2", "c4") if base in numbers["paired"]]
    limit = UNIFORM - FAR
    figures = [f for base in tested for f in _pair(numbers, base, limit)]
    words = Words(
        title=say("With its best \u03c3 the same network sees more"),
        statement=say(
            "With \u03c3 at its optimum the same networks, C2 and C4, use their latents: blur goes, and bits/dim "
            "falls far below {uniform}.",
            uniform=number(UNIFORM, 0),
        ),
        rule=say(
            "Supported if, for every pair that was trained, active units rise, PSNR rises by {sigmas} standard errors "
            "of the difference on the same images, and bits/dim lies below {limit} by {sigmas} standard errors.",
            sigmas=SIGMAS,
            limit=number(limit, 0),
        ),
        supported=say(
            "Nothing was changed but the \u03c3 that the loss believes in: the same network, the same number of "
            "epochs. That alone fills the code and sharpens the image."
        ),
        untested=say("No network was trained both with \u03c3\u00b2 = 1/2 and with \u03c3 at its optimum."),
    )
    return decided(3, words, figures, bool(tested))


def _pair(numbers: Numbers, base: str, limit: float) -> list[Figure]:
    fixed, optimal = numbers["runs"][base], numbers["runs"][f"{base}-optimal"]
    gain, name = numbers["paired"][base]["psnr"], NAMES[base]
    units, directions = (
        [run[metric]["value"] for run in (fixed, optimal)] for metric in ("active_units", "directions")
    )
    return [
        Figure(
            say("{name}: active units of {total}", name=name, total=optimal["active_units"]["of"]),
            f"{units[0]} \u2192 {units[1]}",
            units[1] > units[0],
        ),
        Figure(
            say("{name}: active directions, the principal axes of the codes", name=name),
            f"{directions[0]} \u2192 {directions[1]}",
            None,
        ),
        Figure(
            say("{name}: PSNR in dB at z = \u03bc", name=name),
            f"{number(fixed['psnr']['value'])} \u2192 {number(optimal['psnr']['value'])} "
            f"({signed(gain['value'])} \u00b1 {number(gain['se'])})",
            surely_above(gain, 0),
        ),
        Figure(
            say("{name}: bits/dim as trained", name=name),
            f"{number(fixed['bits_per_dim']['value'], 4)} \u2192 {plus(optimal['bits_per_dim'], 4)}",
            surely_below(optimal["bits_per_dim"], limit),
        ),
    ]


# ------------------------------------------------------------------------------------------------ 4: locality
_SEEDS = ("c2-optimal", "c2-optimal-seed1", "c2-optimal-seed2")
_PERMUTED = ("c2-optimal-permuted", "c4-optimal-permuted")


def _locality(numbers: Numbers) -> Claim:
    runs = numbers["runs"]
    tested = all(name in runs for name in (*_SEEDS, *_PERMUTED, "c4-optimal"))
    words = Words(
        title=say("What flattening loses is locality"),
        statement=say(
            'Locality, not "lost pixel relations", is what flattening costs: with the pixels of all images permuted '
            "in the same "
            "way the MLP's ELBO stays within seed noise and the ConvVAE's falls."
        ),
        rule=say(
            "Supported if the MLP's ELBO on permuted pixels lies within {sigmas} standard deviations of the mean of "
            "three seeds (of the difference between a fourth seed and that mean; by chance one seed in 26 lies "
            "outside), and the ConvVAE's falls by more than as many.",
            sigmas=SIGMAS,
        ),
        supported=say(
            "The MLP never knew which pixels are neighbours, so it loses nothing when they are shuffled. The "
            "convolutional network was built on that knowledge, and pays when it is false."
        ),
        untested=say("It needs runs on permuted pixels and two more seeds, which --locality and --full add."),
    )
    return decided(4, words, _moved(runs) if tested else [], tested)


def _moved(runs: Mapping[str, Any]) -> list[Figure]:
    """The change of the ELBO by permutation, against what a new seed changes.

    The permuted MLP is one seed more: its initial weights have the same distribution whatever the order of the pixels. With s
    the standard deviation of n seeds, its distance from their mean has the standard deviation s sqrt(1 + 1/n); for n = 3 a
    correct program leaves 5 of these once in 26 trials (Student's t with 2 degrees of freedom).
    """
    seeds = [runs[name]["elbo"]["value"] for name in _SEEDS]
    room = SIGMAS * statistics.stdev(seeds) * math.sqrt(1 + 1 / len(seeds))
    mlp = runs["c2-optimal-permuted"]["elbo"]["value"] - statistics.mean(seeds)
    conv = runs["c4-optimal-permuted"]["elbo"]["value"] - runs["c4-optimal"]["elbo"]["value"]
    return [
        Figure(
            say("ELBO of {name}, three seeds, nats", name=NAMES["c2-optimal"]),
            " / ".join(number(value) for value in seeds),
            None,
        ),
        Figure(say("what seeds may change ({sigmas} standard deviations), nats", sigmas=SIGMAS), number(room), None),
        Figure(say("MLP: change by permutation, nats"), signed(mlp), abs(mlp) <= room),
        Figure(say("ConvVAE: change by permutation, nats"), signed(conv), conv < -room),
    ]
