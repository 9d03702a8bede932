"""Sentences that a run keeps as text, known again by their form, so that a page can say them in another language."""

from __future__ import annotations

import re
from string import Formatter

from diabolo.language import say

#: When the loss was measured, how far training had come, a K that varies: by `training` and `evaluation`, in order of trying.
_FORMS = (
    say("at the first step"),
    say("with the weights that were kept"),
    say("stopped (time: {time}) at epoch {epoch}: its weights {weights} are measured", time="", epoch="", weights=""),
    say("{state} at epoch {epoch}: its weights so far are measured", state="", epoch=""),
    say("of epoch {epoch}, the lowest validation loss so far", epoch=""),
    say("of step {step}, for no epoch has a validation loss yet", step=""),
    say("of step {step}", step=""),
    say("adaptive (SE <= {se})", se=""),
    say("interrupted"),
    say("running"),
    say("diverged"),
    say("failed"),
)


def shown_k(k: int | str) -> str:
    """The number of draws as text, or the words that are kept where each image has its own."""
    return f"{k:,}" if isinstance(k, int) else known_again(k)


def known_again(text: str) -> str:
    """The sentence, said, if it has a known form, its values too; else the text as it is."""
    for form in _FORMS:
        if found := re.fullmatch(_pattern(form.template), text):
            return form.filled({name: known_again(value) for name, value in found.groupdict().items()})
    return text


def _pattern(template: str) -> str:
    pieces = Formatter().parse(template)
    return "".join(re.escape(literal) + (f"(?P<{name}>.+)" if name else "") for literal, name, *_ in pieces)
