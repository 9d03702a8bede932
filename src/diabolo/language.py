"""The sentences of a report: written in English where they are needed, shown in other languages from one catalogue each.

`say` fills in a sentence and remembers how it was made; a page that is written in another language looks its template up
in `translations/LANG.toml`, or in the chapter's `LANG.CHAPTER.toml`, and fills in the values again. A sentence that the
catalogue lacks is an error, and so is a placeholder that the two sides do not share. What was never said - a name, a number,
a key - is the same everywhere.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache, reduce
from pathlib import Path
from typing import Any, Self

from diabolo.errors import UsageError, did_you_mean

#: The language that the source is written in; it needs no catalogue.
ENGLISH = "en"
TRANSLATIONS = Path(__file__).parent / "translations"


class Said(str):
    """A sentence in English that remembers its template and the values filled in: it can be said again otherwise."""

    template: str
    values: Mapping[str, object]

    def __new__(cls, template: str, values: Mapping[str, object]) -> Self:
        sentence = super().__new__(cls, template.format(**values))
        sentence.template, sentence.values = template, values
        return sentence

    def __str__(self) -> str:  # str(sentence), which matplotlib keeps, would forget how it was made
        return self

    def __getnewargs__(self) -> tuple[str, Mapping[str, object]]:  # type: ignore[override]  # a copy is made in the same way
        return self.template, self.values

    def filled(self, values: Mapping[str, object]) -> Said:
        """The same sentence with other values."""
        return Said(self.template, values)


def say(template: str, /, **values: object) -> Said:
    """A sentence of a report: its template, a literal that is a key of every catalogue, and its values by name.

    A value may be said itself; it is then translated with the sentence.
    """
    return Said(template, values)


def joined(template: str, parts: Iterable[str]) -> str:
    """All parts as one: the template, with {before} and {after}, puts each behind those before it."""
    return reduce(lambda before, after: Said(template, {"before": before, "after": after}), parts)


# -------------------------------------------------------------------------------------------------------- other languages
def languages() -> list[str]:
    """English, and every language with a catalogue."""
    return [ENGLISH, *sorted({path.name.partition(".")[0] for path in TRANSLATIONS.glob("*.toml")})]


def check(lang: str) -> None:
    """Refuse a language that no page can be written in.

    Raises:
        UsageError: which names the languages there are.
    """
    if lang not in languages():
        raise UsageError(f"unknown language {lang!r}", did_you_mean(lang, languages()))


@cache
def read_catalogue(lang: str) -> dict[str, Any]:
    """`tag`, the language as HTML names it, and `texts`: {template: its translation}, all files of the language together.

    Raises:
        UsageError: if there is no such language.
    """
    check(lang)
    if lang == ENGLISH:
        return {"tag": "en", "texts": {}}
    parts = [tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(TRANSLATIONS.glob(f"{lang}.*"))]
    texts = {template: text for part in parts for template, text in part["texts"].items()}
    return {"tag": next(part["tag"] for part in parts if "tag" in part), "texts": texts}


def tag(lang: str) -> str:
    """A language as HTML names it."""
    return str(read_catalogue(lang)["tag"])


def template_in(lang: str, template: str) -> str:
    """A template in a language.

    Raises:
        LookupError: if the catalogue lacks it, which is a fault of the package.
    """
    texts = read_catalogue(lang)["texts"]
    if lang != ENGLISH and template not in texts:
        raise LookupError(f"the catalogue of {lang} in translations has no {template!r}")
    return str(texts.get(template, template))


def translate(template: str, lang: str, /, **values: object) -> str:
    """A sentence in a language, its values filled in and, where they were said, translated."""
    return template_in(lang, template).format(**{name: shown(value, lang) for name, value in values.items()})


def shown(value: Any, lang: str) -> Any:
    """What a page in this language shows of a value: what was said is translated, everything else stays as it is."""
    return translate(value.template, lang, **value.values) if isinstance(value, Said) else value
