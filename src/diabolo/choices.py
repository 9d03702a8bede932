"""What `train folder:PATH` chooses: a preset and overrides fitted to the folder, printed as the command that repeats it.

The choice is made from four facts, so that a reader can make it by hand; the user's own words come after it and win.
Imports no torch.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from diabolo.config import COMPONENTS, Resolved, resolve
from diabolo.data.images import Reading, read_checked
from diabolo.errors import UsageError

if TYPE_CHECKING:
    from diabolo.data.spec import Dataset

#: Convolutions whose strides fit the size, and a Gaussian whose sigma is learned.
PRESET = "conv-vae"
#: Steps that are aimed at: minutes on a laptop.
STEPS = 3000
#: A small folder is not repeated more often: of 200 images the held-out loss was lowest after 21 epochs in our trial, and
#: `keep=best` keeps that epoch.
MOST_EPOCHS = 100


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What decides: how many images, the side of their squares, and 1 (grey) or 3 channels."""

    images: int
    size: int
    channels: int

    def __str__(self) -> str:
        colour = "grey" if self.channels == 1 else "RGB"
        return f"{self.images:,} {colour} images of {self.size}x{self.size}"


@dataclass(frozen=True)
class Choice:
    """A folder that was read, the overrides of `PRESET` that were chosen for it, and the user's own, which win."""

    reading: Reading
    chosen: tuple[str, ...]
    given: tuple[str, ...]

    @property
    def overrides(self) -> tuple[str, ...]:
        """What was chosen, without the keys that the user gives, then the user's own."""
        given = {_key(text) for text in self.given}
        return (*(text for text in self.chosen if _key(text) not in given), *self.given)

    @property
    def command(self) -> str:
        """The command that repeats the choice, quoted for a POSIX shell."""
        return f"diabolo train {PRESET} {shlex.join(self.overrides)}"

    def dataset(self, say: Callable[[str], None]) -> Dataset:
        """The data set of the images that were read, without reading them again."""
        from diabolo.data.folder import dataset

        return dataset(self.reading, say)

    def resolved(self) -> Resolved:
        """The configuration, with the origin "chosen" of what is neither the preset's nor the user's."""
        found = resolve(PRESET, self.overrides)
        keys = {_key(text) for text in self.chosen} - {_key(text) for text in self.given} | {"data.path"}
        origins = {
            path: "chosen" if path.removesuffix(".name") in keys else origin for path, origin in found.origins.items()
        }
        return Resolved(found.config, MappingProxyType(origins))


def is_folder(word: str) -> bool:
    """Whether the word after `train` names a folder of images rather than a preset."""
    return word.startswith("folder:")


def facts_of(reading: Reading) -> Facts:
    """What decides of a folder that was read."""
    return Facts(images=len(reading.pictures), size=reading.size, channels=reading.channels)


def choose(facts: Facts) -> dict[str, str]:
    """The overrides of `PRESET` for a folder, each with its reason.

    With n training images (80 % of all) in batches of b an epoch is ceil(n / b) steps, and `STEPS` of them are aimed at.
    """
    training = max(1, round(0.8 * facts.images))
    # Few images in small batches: more steps, and noise that hinders memorising. Batch normalisation wants more than a few.
    batch = 16 if training < 400 else 32
    an_epoch = math.ceil(training / batch)
    # The cost of a step grows with the area and with width squared: above 64x64 the network is made thinner. For few images,
    # too: of 173 the lowest held-out loss was 529 nats at width 16, 739 at 32 (9 images, one seed), at a third of the cost.
    width = max(8, min(16 if training < 400 else 32, 2048 // facts.size))
    return {
        "data.size": str(facts.size),
        # As many as the side has pixels; the KL switches off those that the images do not need.
        "model.latent": str(max(16, min(128, facts.size))),
        "model.encoder.width": str(width),
        "model.decoder.width": str(width),
        "train.batch": str(batch),
        "train.epochs": str(max(1, min(MOST_EPOCHS, round(STEPS / an_epoch)))),
        # An epoch of a small folder is a few steps: a row an epoch is enough, and a state every few hundred steps.
        "train.log_every": str(min(100, an_epoch)),
        "train.checkpoint_every": "250",
        # The weights of the epoch with the lowest validation loss: what a small folder needs most.
        "train.keep": "best",
    }


def refuse_other_data(word: str, overrides: Sequence[str]) -> None:
    """Refuse overrides that name data beside `folder:PATH`.

    Raises:
        UsageError: naming the first.
    """
    named = [text for text in overrides if _key(text) in {"data", "data.path"}]
    if named:
        raise UsageError(f"{word} and {named[0]} both name the data", remedy="Leave one of them out.")


def for_folder(word: str, overrides: Sequence[str], say: Callable[[str], None]) -> Choice:
    """Read the folder of `folder:PATH` once and choose; the user's overrides win.

    Raises:
        UsageError: for a wrong override, before anything is read.
        DataError: if the folder cannot serve.
    """
    given = resolve(PRESET, [f"data={word}", *(text for text in overrides if _key(text) != "seed")]).config.data.params
    reading = read_checked(given["path"], given["size"], given["colour"], say)
    replaced = [f"{key}." for key in map(_key, overrides) if key in COMPONENTS]
    chosen = {key: value for key, value in choose(facts_of(reading)).items() if not key.startswith(tuple(replaced))}
    words = [f"data=folder:{given['path']}", *(f"{key}={value}" for key, value in chosen.items())]
    return Choice(reading, tuple(words), tuple(overrides))


def _key(text: str) -> str:
    return text.partition("=")[0].strip().removesuffix(".name")
