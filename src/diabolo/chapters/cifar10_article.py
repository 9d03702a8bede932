"""What the article states of CIFAR-10 in numbers and names, and how the runs of this chapter are called."""

from __future__ import annotations

import math

from diabolo.code_length import bits
from diabolo.language import say

#: -(SSE + KL) per image as the article prints it; it names no model for the first, presumably C3. The second is its ConvVAE.
ARTICLE = {"c3": -92.6265, "c4": -81.5941}
#: Pixel values of a CIFAR-10 image, which those numbers are of.
ARTICLE_DIMENSIONS = 3072
#: sigma^2 of the Gaussian whose -log p(x|z) is the sum of squared errors, without its constant.
VARIANCE = 0.5
#: Bits per dimension of giving every level of 8 bits the same probability.
UNIFORM = 8.0

#: What each run is called, in the order of the story.
NAMES = {
    "c1": "C1",
    "c2": "C2",
    "c3": "C3",
    "c4": "C4",
    "c2-optimal": say("{name}, optimal \u03c3", name="C2"),
    "c4-optimal": say("{name}, optimal \u03c3", name="C4"),
    "c5-leaky": "C5 LeakyReLU",
    "c5-leaky-optimal": say("{name}, optimal \u03c3", name="C5 LeakyReLU"),
    "c5-asymmetric": say("C5 asymmetric (control)"),
    "c2-optimal-seed1": say("{name}, seed {seed}", name=say("{name}, optimal \u03c3", name="C2"), seed=1),
    "c2-optimal-seed2": say("{name}, seed {seed}", name=say("{name}, optimal \u03c3", name="C2"), seed=2),
    "c2-optimal-permuted": say("{name}, pixels permuted", name=say("{name}, optimal \u03c3", name="C2")),
    "c4-optimal-permuted": say("{name}, pixels permuted", name=say("{name}, optimal \u03c3", name="C4")),
}
#: The run that is trained on the loss that no likelihood gives.
CONTROL = "c5-asymmetric"
#: Runs whose loss is the article's: a Gaussian with sigma^2 = 1/2.
FIXED = ("c1", "c2", "c3", "c4")

FIGURES = {
    "5-1": say("Figure 5-1"),
    "5-2a": say("Figure 5-2a"),
    "5-2b": say("Figure 5-2b"),
    "5-3": say("Figure 5-3"),
    "5-4a": say("Figure 5-4a"),
    "5-4b": say("Figure 5-4b"),
    "5-5": say("Figure 5-5"),
    "5-6": say("Figure 5-6"),
}


def dropped_constant(dimensions: int) -> float:
    """The constant that SSE + KL leaves out of a Gaussian's -ELBO at sigma^2 = 1/2: D/2 log(pi) nats per image."""
    return dimensions / 2 * math.log(2 * math.pi * VARIANCE)


def density_bits(nats: float, dimensions: int) -> float:
    """Bits per dimension of 8-bit values from the negative log density of values in [0, 1], nats per image."""
    return bits(nats, dimensions, density=True)
