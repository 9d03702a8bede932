"""What all features of images promise, and the checks that they share: of the images, and of the weights they were given."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from torch import Tensor

from diabolo.errors import DataError, UsageError


class Features:
    """A fixed map phi from images to vectors: (N, C, H, W) in [0, 1] -> (N, dimensions), float32.

    An image's vector depends on that image alone, and is the same each time. No gradient passes: features measure, they teach
    nothing.

    weights_hash: the SHA-256 of the weights, which a distance is stated with. dimensions: the length of a vector.
    about: in one sentence, what the features are.
    """

    weights_hash: str
    dimensions: int
    about: str

    def __call__(self, images: Tensor) -> Tensor:
        """phi(x) of images x (N, C, H, W) in [0, 1]: (N, dimensions), float32, on the device of the images.

        Raises:
            UsageError: for images of another shape, kind of number or range.
        """
        raise NotImplementedError


def check_images(images: Tensor, shape: tuple[int | None, int | None, int | None], name: str) -> None:
    """Refuse what are not images (N, *shape) of float32 in [0, 1]; None in `shape` stands for any size.

    Raises:
        UsageError: which says what was given.
    """
    wanted = ", ".join("N" if size is None else str(size) for size in (None, *shape))
    fits = images.ndim == 4 and all(w in (None, size) for w, size in zip(shape, images.shape[1:]))
    if not fits or images.dtype != torch.float32:
        raise UsageError(
            f"features {name} read images ({wanted}) of float32",
            f"These are {tuple(images.shape)} of {str(images.dtype).removeprefix('torch.')}.",
            "Give levels k of a byte as k / 255, with the channels before height and width.",
        )
    if images.numel() and not bool(((images >= 0) & (images <= 1)).all()):  # a NaN is in no range
        raise UsageError(
            f"features {name} read values in [0, 1]",
            f"These lie between {images.min().item():g} and {images.max().item():g}.",
            "Clamp the means of a likelihood that goes beyond the range of a pixel.",
        )


def pinned_bytes(path: Path, sha256: str, remedy: str) -> bytes:
    """The content of a file of weights, once its SHA-256 is the one that the source names.

    Raises:
        DataError: if the file is missing or is another one; `remedy` says how to get the right one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"the weights {path} cannot be read", str(error), remedy) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(
            f"the weights {path} are not the ones that are expected", f"SHA-256 {found}, not {sha256}.", remedy
        )
    return content


def read_weights(path: Path, sha256: str, remedy: str = "Install diabolo again.") -> dict[str, Tensor]:
    """The tensors of a safetensors file whose content has the hash that the source names.

    Raises:
        DataError: if the file is missing, corrupt or another one.
    """
    content = pinned_bytes(path, sha256, remedy)
    try:
        return parse(content)
    except SafetensorError as error:
        raise DataError(f"the weights {path} are corrupt", str(error), remedy) from error
