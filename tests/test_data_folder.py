"""A folder of images: a zoo of files, each with its expected outcome, and what becomes of the folder."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diabolo.config import resolve
from diabolo.data import Access, Dataset, images, load
from diabolo.data.images import read_folder, walk
from diabolo.errors import DataError, UsageError
from diabolo.evaluation import Settings, evaluate
from diabolo.training import train

posix = pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def flat(mode: str, colour: object, side: tuple[int, int] = (70, 70)) -> Image.Image:
    return Image.new(mode, side, colour)


def halves(left: int, right: int, side: int = 80) -> Image.Image:
    """Left and right half of different grey."""
    levels = np.full((side, side), left, dtype=np.uint8)
    levels[:, side // 2 :] = right
    return Image.fromarray(levels)


def sixteen(level: int) -> Image.Image:
    return Image.fromarray(np.full((70, 70), level, dtype=np.uint16))


def palette(transparent: bool) -> bytes:
    image = Image.new("P", (70, 70), 1)
    image.putpalette([0, 0, 0, 200, 100, 50] + [0] * 762)
    return encoded(image, transparency=1) if transparent else encoded(image)


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(halves(0, 255), "JPEG", quality=95, exif=exif)


def bomb(side: int) -> bytes:
    """A PNG whose header promises side x side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def animated(kind: str) -> bytes:
    return encoded(flat("RGB", (10, 20, 30)), kind, save_all=True, append_images=[flat("RGB", (200, 0, 0))])


def interlaced(levels: np.ndarray) -> bytes:
    """A grey PNG in the seven passes of Adam7 (https://www.w3.org/TR/png-3/#8InterlaceMethods), which Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    parts = [levels[y::dy, x::dx] for x, y, dx, dy in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    header = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


PHOTO = encoded(halves(30, 220), "JPEG", quality=95)
PNG = encoded(halves(30, 220))
FROM_16_BITS = "16 bits scaled to 8"
ON_WHITE = "transparent pixels laid on white"

#: name -> content, and the mean RGB level of the square that it becomes (within 2 of 255)
READ = {
    "grey.png": (encoded(flat("L", 77)), 77),
    "bit.png": (encoded(flat("1", 1)), 255),
    "rgb.png": (encoded(flat("RGB", (10, 20, 30))), (10, 20, 30)),
    "rgb.JPG": (encoded(flat("RGB", (200, 100, 50)), "JPEG", quality=95), (200, 100, 50)),
    "grey.jpeg": (encoded(flat("L", 99), "JPEG"), 99),
    "cmyk.jpg": (encoded(flat("CMYK", (0, 0, 0, 0)), "JPEG"), 255),
    "cmyk red.jpg": (encoded(flat("CMYK", (0, 255, 255, 0)), "JPEG", quality=95), (255, 0, 0)),
    "cmyk dark.jpeg": (encoded(flat("CMYK", (0, 0, 0, 200)), "JPEG", quality=95), 55),
    "progressive.jpg": (encoded(flat("RGB", (20, 120, 220)), "JPEG", quality=95, progressive=True), (20, 120, 220)),
    "interlaced.png": (interlaced(np.full((71, 73), 91, np.uint8)), 91),
    "photo.webp": (encoded(flat("RGB", (10, 200, 30)), "WEBP", lossless=True), (10, 200, 30)),
    "alpha.webp": (encoded(flat("RGBA", (0, 0, 0, 0)), "WEBP", lossless=True), 255),
    "clear.png": (encoded(flat("RGBA", (0, 0, 0, 0))), 255),
    "half.png": (encoded(flat("RGBA", (0, 0, 0, 128))), 127),
    "opaque.png": (encoded(flat("RGBA", (9, 8, 7, 255))), (9, 8, 7)),
    "grey alpha.png": (encoded(flat("LA", (0, 0))), 255),
    "palette.png": (palette(False), (200, 100, 50)),
    "palette clear.png": (palette(True), 255),
    "rgb keyed.png": (encoded(flat("RGB", (1, 2, 3)), transparency=(1, 2, 3)), 255),
    "sixteen bright.png": (encoded(sixteen(65535)), 255),
    "sixteen middle.png": (encoded(sixteen(32768)), 128),
    "sixteen dark.png": (encoded(sixteen(256)), 1),
    "wide.png": (encoded(flat("L", 55, (300, 70))), 55),
    "tall.png": (encoded(flat("L", 66, (3, 400))), 66),
    "one pixel.png": (encoded(flat("L", 44, (1, 1))), 44),
    "one pixel.jpg": (encoded(flat("RGB", (44, 44, 44), (1, 1)), "JPEG", quality=95), 44),
    "one pixel.webp": (encoded(flat("RGB", (200, 100, 50), (1, 1)), "WEBP", lossless=True), (200, 100, 50)),
    "line.png": (encoded(flat("L", 37, (5000, 1))), 37),
    "ribbon.jpg": (encoded(flat("L", 38, (70, 9000)), "JPEG"), 38),
    "large.jpg": (encoded(flat("L", 88, (3000, 2000)), "JPEG"), 88),
    "png inside.jpg": (encoded(flat("L", 33)), 33),
    "animated.webp": (animated("WEBP"), (10, 20, 30)),
    "animated.png": (animated("PNG"), (10, 20, 30)),
    "\u732b/\u6a58\u732b \u4e00\u53f7.png": (encoded(flat("L", 11)), 11),
    "a b/c d/e f.png": (encoded(flat("L", 22)), 22),
    "cafe\u0301/x.png": (encoded(flat("L", 23)), 23),
}

SKIPPED = {
    "empty.png": (b"", "empty"),
    "text.jpg": (b"this is no image at all", "no JPEG, PNG or WebP"),
    "gif inside.png": (encoded(flat("L", 1), "GIF"), "no JPEG, PNG or WebP"),
    "tiff inside.png": (encoded(flat("L", 1), "TIFF"), "no JPEG, PNG or WebP"),
    "cut.jpg": (encoded(Image.effect_noise((90, 90), 50), "JPEG")[:900], "damaged"),
    "cut.png": (encoded(Image.effect_noise((90, 90), 50))[:900], "damaged"),
    "flipped.png": (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "damaged"),
    "bomb.png": (bomb(40_000), "pixels: refused"),
    "small bomb.png": (bomb(9_700), "pixels: refused"),
    "cut.webp": (encoded(Image.effect_noise((90, 90), 50), "WEBP")[:500], "damaged|no JPEG"),
}

IGNORED = {
    "notes.txt": b"x",
    "Thumbs.db": b"x",
    ".hidden.png": PNG,
    "__MACOSX/._grey.png": b"x",
    "animation.gif": encoded(flat("L", 1), "GIF"),
    ".git/objects.png": PNG,
}


def put(root: Path, contents: dict[str, bytes]) -> Path:
    for name, body in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return root


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    root = tmp_path_factory.mktemp("zoo")
    put(root, {name: body for name, (body, _) in (READ | SKIPPED).items()})
    put(root, IGNORED)
    return read_folder(str(root))


def many(root: Path, count: int, side: int = 40, colour: bool = False) -> Path:
    """Different images in two classes."""
    generator = np.random.default_rng(0)
    shape = (side, side, 3) if colour else (side, side)
    for i in range(count):
        levels = generator.integers(0, 256, shape, dtype=np.uint8)
        put(root, {f"{'ab'[i % 2]}/{i:03d}.png": encoded(Image.fromarray(levels))})
    return root


def splits(dataset: Dataset):
    return [dataset.train, dataset.validation, dataset.test]


# -- the zoo -----------------------------------------------------------------------------------------------------------


def test_the_zoo_is_a_zoo():
    assert len(READ) + len(SKIPPED) + len(IGNORED) >= 40


@pytest.mark.parametrize("name", READ)
def test_an_image_becomes_the_levels_it_should(zoo, name):
    import unicodedata

    (picture,) = [p for p in zoo.pictures if p.path == unicodedata.normalize("NFC", name)]
    assert picture.levels.shape == (64, 64, 3) and picture.levels.dtype == np.uint8
    expected = np.broadcast_to(READ[name][1], (3,))
    assert np.abs(picture.levels.reshape(-1, 3).mean(0) - expected).max() <= 2
    assert (FROM_16_BITS in picture.done) == name.startswith("sixteen")
    assert (ON_WHITE in picture.done) == any(word in name for word in ("alpha", "clear", "half", "keyed"))
    assert ("enlarged" in picture.done) == name.startswith(("tall", "one pixel", "line"))


@pytest.mark.parametrize("name", SKIPPED)
def test_a_file_that_is_no_image_is_listed_with_its_reason(zoo, name):
    import re

    assert re.search(SKIPPED[name][1], dict(zoo.found.skipped)[name])


def test_nothing_else_is_read_or_listed(zoo):
    assert len(zoo.pictures) == len(READ) and len(zoo.found.skipped) == len(SKIPPED)
    assert zoo.found.ignored == {"hidden": 3, "no image by its name": 3}
    for needed in (
        "36 images read as RGB levels",
        "3 16 bits scaled",
        "10 skipped",
        "3 ignored: hidden",
        "first taken",
    ):
        assert needed in zoo.note()


def test_too_many_unreadable_files_are_an_error_that_names_them(zoo):
    with pytest.raises(DataError) as caught:
        load("folder", {"path": str(zoo.found.root)})
    text = str(caught.value)
    assert f"10 of 46 images in {zoo.found.root} cannot be read (21.7 %)" in text
    assert "bomb.png: " in text and "diabolo data check" in text


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_an_image_upright(tmp_path, orientation):
    """The left half is black before it is turned: where it is afterwards is what the EXIF standard says."""
    put(tmp_path, {"x.jpg": turned(orientation)})
    levels = read_folder(str(tmp_path)).pictures[0].levels
    sides = {"left": levels[:, :24], "right": levels[:, 40:], "top": levels[:24], "bottom": levels[40:]}
    dark = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}[orientation]
    assert [side for side, part in sides.items() if part.mean() < 10] == [dark]


def test_an_interlaced_image_is_the_image_that_it_is_without(tmp_path):
    levels = np.random.default_rng(2).integers(0, 256, (64, 64), dtype=np.uint8)
    put(tmp_path, {"plain.png": encoded(Image.fromarray(levels)), "seven passes.png": interlaced(levels)})
    assert all(np.array_equal(picture.levels, levels) for picture in read_folder(str(tmp_path)).pictures)


@pytest.mark.parametrize("side", [(1000, 64), (64, 1000), (1001, 77), (2, 900)])
def test_of_an_extreme_shape_the_middle_is_kept(tmp_path, side):
    """Dark at both ends of the long side, bright in the middle: no dark pixel may be left."""
    width, height = side
    levels = np.zeros((height, width), dtype=np.uint8)
    middle = [
        slice((n - min(side)) // 2 - 2, (n + min(side)) // 2 + 2) if n == max(side) else slice(None)
        for n in (height, width)
    ]
    levels[tuple(middle)] = 255
    put(tmp_path, {"x.png": encoded(Image.fromarray(levels))})
    assert read_folder(str(tmp_path), 32).pictures[0].levels.min() >= 250


def test_broken_exif_of_a_good_image_does_no_harm(tmp_path):
    put(tmp_path, {"x.jpg": encoded(halves(0, 255), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")})
    assert read_folder(str(tmp_path)).pictures[0].levels[:, :24].mean() < 10


def test_hostile_bytes_never_end_the_reading(tmp_path):
    """Every byte string of a damaged file is either an image or a listed file."""
    generator = np.random.default_rng(1)
    originals = {"jpg": PHOTO, "png": PNG, "webp": encoded(halves(30, 220), "WEBP")}
    for kind, body in originals.items():
        for i in range(40):
            damaged = bytearray(body)
            for position in generator.integers(0, len(damaged), 4):
                damaged[position] = generator.integers(0, 256)
            put(tmp_path, {f"{i}.{kind}": bytes(damaged[: generator.integers(1, len(damaged) + 1)])})
    put(tmp_path, {"good.png": PNG})
    assert read_folder(str(tmp_path)).candidates == 121


# -- links, pipes, names -----------------------------------------------------------------------------------------------


@posix
def test_links_out_are_refused_and_pipes_are_not_opened(tmp_path):
    outside = put(tmp_path / "outside", {"secret.png": PNG, "more/x.png": PNG})
    root = put(tmp_path / "root", {"real.png": PNG, "inner/y.png": PHOTO})
    (root / "out.png").symlink_to(outside / "secret.png")
    (root / "up").symlink_to("../outside/more")
    (root / "broken.png").symlink_to("nowhere.png")
    (root / "loop").symlink_to(".")
    (root / "self.png").symlink_to("self.png")
    (root / "inner" / "again.png").symlink_to("../real.png")
    os.mkfifo(root / "pipe.png")
    found = walk(root)
    assert [path.relative_to(root).as_posix() for path in found.files] == ["inner/again.png", "inner/y.png", "real.png"]
    refused = "a link out of the folder: refused"
    assert dict(found.skipped) == {
        "out.png": refused,
        "up": refused,
        "broken.png": "a broken link",
        "self.png": "a broken link",
    }
    assert found.ignored == {"no regular file": 1, "a link to a folder, which is read where it lies": 1}


@posix
def test_a_pipe_that_took_a_file_s_place_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(images._Unreadable, match="no regular file"), images._content(tmp_path / "pipe.png"):
        pytest.fail("a pipe was opened")


def test_a_root_that_is_a_link_is_read(tmp_path):
    root = put(tmp_path / "root", {"x.png": PNG})
    (tmp_path / "link").symlink_to(root)
    assert len(read_folder(str(tmp_path / "link")).pictures) == 1


def test_the_order_is_that_of_the_bytes(tmp_path):
    names = ["B.png", "a.png", "a/z.png", "a-b.png", "\u00e9.png", "\u732b.png", "Z/1.png", "10.png", "9.png"]
    put(tmp_path, dict.fromkeys(names, PNG))
    assert [p.path for p in read_folder(str(tmp_path)).pictures] == sorted(names, key=str.encode)


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_a_name_that_is_no_utf_8_is_shown_with_a_mark(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(PNG)
    assert read_folder(str(tmp_path)).pictures[0].path == "\ufffd.png"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x.png"], ["."]),
        (["\u732b/x.png", "a b/x.png", "y.png"], [".", "a b", "\u732b"]),
        (["cats/tabby/x.png", "cats/y.png"], ["cats/tabby", "cats"]),
        (["train/cat/x.png", "test/cat/y.png", "Val/dog/z.png"], ["dog", "cat", "cat"]),
        (["train/x.png", "test/y.png"], [".", "."]),
        (["train/x.png", "other/y.png"], ["other", "train"]),
    ],
)
def test_folders_name_classes(tmp_path, names, expected):
    put(tmp_path, dict.fromkeys(names, PNG))
    assert sorted(images.class_names(read_folder(str(tmp_path)).pictures)) == sorted(expected)


# -- the data set ------------------------------------------------------------------------------------------------------


def test_splits_depend_on_content_alone(tmp_path):
    one = many(tmp_path / "one", 200)
    dataset = load("folder", {"path": str(one)})
    counts = [len(split) for split in splits(dataset)]
    assert sum(counts) == 200
    for count, share in zip(counts, (0.8, 0.1, 0.1)):  # 5 sigma of a binomial; the seed of the images is fixed
        assert abs(count - 200 * share) < 5 * (200 * share * (1 - share)) ** 0.5
    where = {bytes(v.numpy()): split.name for split in splits(dataset) for v in split.values}
    for path in sorted(one.rglob("*0.png")):
        path.rename(path.with_name(f"renamed {path.name}"))
    for path in sorted(one.rglob("*3.png")):
        path.unlink()
    again = load("folder", {"path": str(one)})
    assert {bytes(v.numpy()): split.name for split in splits(again) for v in split.values}.items() <= where.items()
    assert load("folder", {"path": str(many(tmp_path / "two", 200))}).hash == dataset.hash != again.hash


def test_images_that_look_the_same_go_to_one_split(tmp_path):
    root = many(tmp_path, 40)
    for path in sorted(root.glob("a/*.png")):
        image = Image.open(path)
        put(root, {f"copies/{path.stem}.png": path.read_bytes()})
        put(root, {f"copies/{path.stem}.webp": encoded(image.convert("RGB"), "WEBP", lossless=True)})
    dataset = load("folder", {"path": str(root)})
    looks = [{bytes(v.numpy()) for v in split.values} for split in splits(dataset)]
    assert sum(map(len, looks)) == 40 and sum(len(s) for s in splits(dataset)) == 80
    assert "40 look like another one" in dataset.note


@pytest.mark.parametrize("count", [3, 4, 5, 6, 7, 8, 9, 10, 12])
def test_no_split_is_empty_and_from_six_images_on_none_has_one(tmp_path, count):
    found = [len(split) for split in splits(load("folder", {"path": str(many(tmp_path, count))}))]
    assert sum(found) == count and min(found) >= (2 if count >= 6 else 1)


def test_labels_are_those_of_the_folders(tmp_path):
    root = put(tmp_path, {f"\u9ed1/{i}.png": encoded(flat("L", i, (32, 32))) for i in range(12)})
    put(root, {f"white ones/{i}.png": encoded(flat("L", 255 - i, (32, 32))) for i in range(12)})
    dataset = load("folder", {"path": str(root)})
    assert dataset.spec.classes == ("white ones", "\u9ed1")
    assert (dataset.spec.shape, dataset.spec.values, dataset.train.values.dtype) == ((1, 32, 32), "grey", torch.uint8)
    for split in splits(dataset):
        assert torch.equal(split.labels, (split.values[:, 0, 0, 0] < 128).long())


def test_one_per_cent_is_skipped_and_more_is_not(tmp_path):
    said: list[str] = []
    root = put(many(tmp_path, 99), {"bad.png": b"x"})
    dataset = load("folder", {"path": str(root)}, Access(say=said.append))
    assert "1 skipped: bad.png (no JPEG, PNG or WebP)" in dataset.note
    assert "skipped: bad.png: no JPEG, PNG or WebP" in said
    put(root, {"worse.png": b"x"})
    with pytest.raises(DataError, match=r"2 of 101 images .* \(2.0 %\)"):
        load("folder", {"path": str(root)})


@pytest.mark.parametrize(
    ("params", "shape"),
    [
        ({}, (3, 32, 32)),
        ({"size": 16}, (3, 16, 16)),
        ({"colour": "grey"}, (1, 32, 32)),
        ({"colour": "rgb", "size": 64}, (3, 64, 64)),
    ],
)
def test_size_and_colour(tmp_path, params, shape):
    root = many(tmp_path, 6, colour=True)
    assert load("folder", {"path": str(root), **params}).spec.shape == shape
    for path in root.rglob("*.png"):
        path.write_bytes(encoded(Image.open(path).convert("L").resize((90, 90))))
    wanted = params.get("size", 64)
    grey = params.get("colour") != "rgb"
    assert load("folder", {"path": str(root), **params}).spec.shape == (1 if grey else 3, wanted, wanted)


def test_lossy_compression_does_not_colour_a_grey_folder(tmp_path):
    noise = Image.effect_noise((90, 90), 60).convert("RGB")
    put(tmp_path, {"a.webp": encoded(noise, "WEBP"), "b.jpg": encoded(noise, "JPEG", quality=60), "c.png": PNG})
    reading = read_folder(str(tmp_path))
    assert reading.channels == 1 and {p.levels.shape for p in reading.pictures} == {(64, 64)}
    put(tmp_path, {"d.png": encoded(flat("RGB", (100, 100, 120)))})
    assert read_folder(str(tmp_path)).channels == 3


@pytest.mark.parametrize("size", [-1, 7, 513])
def test_a_size_out_of_range_is_refused(tmp_path, size):
    with pytest.raises(UsageError, match="from 8 to 512"):
        load("folder", {"path": str(tmp_path), "size": size})


def test_a_folder_that_cannot_serve_is_an_error_that_says_why(tmp_path):
    for path, word in ((tmp_path / "none", "does not exist"), (put(tmp_path, {"f": b""}) / "f", "is a file")):
        with pytest.raises(DataError, match=word):
            load("folder", {"path": str(path)})
    with pytest.raises(DataError, match="1 no image by its name"):
        load("folder", {"path": str(tmp_path)})
    put(tmp_path, {"a.png": PNG, "b.png": PNG, "c.png": encoded(flat("L", 9))})
    with pytest.raises(DataError, match="holds 2 different images"):
        load("folder", {"path": str(tmp_path)})
    with pytest.raises(UsageError, match="needs its path"):
        load("folder")
    with pytest.raises(UsageError, match="path is empty"):
        load("folder", {"path": ""})


# -- configuration and command line ------------------------------------------------------------------------------------


def test_the_word_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = resolve("vae", ["data=folder:my images=\u732b", "data.size=32"]).config
    assert config.data.to_dict() == {
        "name": "folder",
        "path": str(tmp_path / "my images=\u732b"),
        "size": 32,
        "colour": "auto",
    }
    with pytest.raises(UsageError, match="data.path is missing"):
        resolve("vae", ["data=folder"])


def test_a_folder_is_trained_evaluated_and_reported(tmp_path):
    torch.set_num_threads(1)
    root = many(tmp_path / "images", 40, colour=True)
    small = ["model.latent=2", "train.epochs=1", "model.encoder.width=8", "model.decoder.width=8"]
    config = resolve("vae", [f"data=folder:{root}", *small]).config
    run = train(config, out=tmp_path / "run", device="cpu")
    assert "40 images read as RGB levels" in run.env["data"]["note"]
    found = evaluate(run, Settings(k=5, images=4, elbo_samples=2), device="cpu")
    assert found["elbo"]["n"] == len(load("folder", {"path": str(root)}).test)
    next(root.rglob("*.png")).unlink()
    with pytest.raises(DataError):
        evaluate(run, Settings(k=5, images=4, elbo_samples=2), device="cpu")


def test_data_check_prints_what_is_wrong_without_torch(tmp_path):
    root = put(many(tmp_path / "my images", 3), {"bad.png": b"x"})
    run = "import sys; from diabolo.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    done = [
        subprocess.run(
            [sys.executable, "-c", run, "data", "check", str(root), *more],
            env={**os.environ, "PYTHONPATH": str(Path(images.__file__).parents[2])},
            capture_output=True, text=True, encoding="utf-8", check=False, timeout=120,
        )
        for more in ((), ("--json",))
    ]  # fmt: skip
    assert [d.returncode for d in done] == [3, 3], done[0].stderr
    assert "skipped  bad.png  no JPEG, PNG or WebP" in done[0].stdout
    found = json.loads(done[1].stdout)
    assert (found["images"], found["classes"], found["tolerable"]) == (3, {"a": 2, "b": 1}, False)
