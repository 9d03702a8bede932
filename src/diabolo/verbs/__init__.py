"""Verbs that return an `Answer`, which `cli.py` prints. torch is imported only once a command is known to be right."""

from __future__ import annotations

from diabolo.verbs import (
    compress,
    denoise,
    doctor,
    explain,
    linear,
    measure,
    priors,
    reading,
    reproduce,
    sampling,
    sweep,
)
from diabolo.verbs.shared import Answer

__all__ = ["VERBS", "Answer"]

VERBS = (
    *reproduce.VERBS,
    *sweep.VERBS,
    *reading.VERBS,
    *doctor.VERBS,
    *explain.VERBS,
    *compress.VERBS,
    *denoise.VERBS,
    *linear.VERBS,
    *priors.VERBS,
    *sampling.VERBS,
    *measure.VERBS,
)
