"""The run directory: the contract between training and everything after it.

    config.json          the resolved configuration, whole; `diabolo train RUN/config.json` repeats the run
    env.json             versions, machine, and the data: hashes, shape, kind of values
    loss_card.json       what the loss is (`card.Card`, measured) and what the values of the data are (`data.scan.Facts`); `when`:
                         written at the start, and again at the end with the weights that were kept, whose sigma may be
                         another
    status.json          running, finished, stopped (its time was up), interrupted, diverged or failed; the exit code; how far
    log.txt              what was said
    metrics.jsonl        one object a logged step or epoch, nats per example, no clock: equal to the byte between a resumed
                         and an uninterrupted run
    timing.jsonl         the clock
    weights.safetensors  the weights (last, or best where a validation split decides; averaged if asked), with the
                         configuration and the data's shape in its metadata, so that the file loads alone
    state/step-NNNNNN/   what resuming needs: model, optimiser and average as safetensors, manifest.json with the SHA-256 and
                         size of each file and the offset into metrics.jsonl; two are kept
    evaluation.json      {metric: {value, se, n, unit, split, ...}}, with `about` for what was evaluated
    per_image.safetensors  what the metrics are means of, image by image
    samples.json         what `measure` found: samples and what they are read by, a row a set
    report.html
    codec-*.json         what `compress` fitted to the training split: quantiser and frequencies, with the hash of the weights

Randomness is a function of (seed, step) and (seed, epoch), so no generator's state needs to be kept. Files are written under
a temporary name, flushed and renamed; a state's manifest comes last. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from diabolo import packaged
from diabolo.config import RunConfig, from_dict, read_json
from diabolo.data.spec import DataSpec
from diabolo.errors import DataError, UsageError
from diabolo.models.autoencoder import Autoencoder
from diabolo.models.build import build_model

if TYPE_CHECKING:
    from diabolo.data.spec import Dataset

SCHEMA = 1
STATES_KEPT = 2
#: The two moments of a loss card.
AT_THE_START, AT_THE_END = "at the first step", "with the weights that were kept"


# ------------------------------------------------------------------------------------------------ writing
def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that its name only ever holds the old content or the new, whole.

    Raises:
        UsageError: if the place cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written", str(error), "Choose another folder with --out.") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically; a NaN or infinity is an error, never a token that other readers reject."""
    write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write safetensors atomically."""
    plain = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    write_bytes(path, save(plain, dict(metadata) if metadata else None))


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_hash(*parts: str) -> str:
    """SHA-256 over the package's source files below `parts` (folders or files of the package): what decides a run's numbers."""
    package = Path(__file__).parent
    files = sorted(file for part in parts for file in _files(package / part))
    digest = hashlib.sha256()
    for file in files:
        digest.update(
            file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes().replace(b"\r\n", b"\n") + b"\0"
        )
    return digest.hexdigest()


def _files(path: Path) -> Iterable[Path]:
    return (
        [path]
        if path.is_file()
        else (p for p in path.rglob("*") if p.suffix in {".py", ".toml", ".j2", ".css", ".svg"})
    )


class Journal:
    """An append-only file of JSON lines, written line by line without a buffer."""

    def __init__(self, path: Path, keep: int | None = None) -> None:
        """Open `path`; `keep` cuts it back to that many bytes first (resuming).

        Raises:
            DataError: if the file is shorter than that.
        """
        if keep and (not path.is_file() or path.stat().st_size < keep):
            raise DataError(f"{path} is shorter than the state says", "Rows are missing: it was cut or replaced.")
        self.path, self.file = path, path.open("ab", buffering=0)
        if keep is not None:
            self.file.truncate(keep)
            self.file.seek(0, os.SEEK_END)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line.

        Raises:
            UsageError: if there is no room for it.
        """
        line = (json.dumps(row, allow_nan=False) + "\n").encode("utf-8")
        try:
            if self.file.write(line) != len(line):
                raise OSError("no room for a whole line")
        except OSError as error:
            remedy = f"Make room, then go on with: diabolo train --resume {self.path.parent}"
            raise UsageError(f"{self.path} cannot be written", str(error), remedy) from error

    @property
    def offset(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        os.fsync(self.file.fileno())
        self.file.close()


class NoJournal(Journal):
    """The journal of a process that another one writes for: nothing is kept."""

    def __init__(self, path: Path, keep: int | None = None) -> None: ...

    def append(self, row: Mapping[str, Any]) -> None: ...


def sweep(run: Path) -> None:
    """Remove what a killed process left half-written. Only under the run's lock."""
    for path in [*run.glob(".*.tmp"), *(run / "state").glob(".*.tmp")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


#: What a run that was stopped before it began leaves behind.
_TRACES = {".lock", "log.txt"}


def create(config: RunConfig, out: Path | None) -> Path:
    """Make a new run directory: `out`, or runs/PRESET-N (runs/smoke-PRESET-N) with the first free N; an existing run is never
    overwritten.

    Raises:
        UsageError: if `out` holds anything, or cannot be made.
    """
    try:
        if out is None:
            return _next_free(Path("runs"), ("smoke-" if config.train.smoke else "") + (config.preset or "run"))
        if out.exists() and (not out.is_dir() or any(path.name not in _TRACES for path in out.iterdir())):
            raise UsageError(
                f"{out} exists already",
                "A run is never overwritten.",
                "Choose another --out"
                + (f", or go on with: diabolo train --resume {out}" if (out / "config.json").is_file() else "."),
            )
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out or 'runs'} cannot be made", str(error), "Choose another folder with --out.") from error
    return out


def _next_free(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = parent / f"{name}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


# ------------------------------------------------------------------------------------------------ state
def save_state(run: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], progress: Mapping[str, Any]) -> Path:
    """Write state/step-NNNNNN as a whole or not at all, then drop all but the newest two."""
    final = run / "state" / f"step-{step:06d}"
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for name, group in tensors.items():
        write_tensors(temporary / f"{name}.safetensors", group)
    files = {p.name: {"sha256": sha256(p), "size": p.stat().st_size} for p in sorted(temporary.iterdir())}
    write_json(temporary / "manifest.json", {"schema": SCHEMA, "step": step, "files": files, "progress": progress})
    shutil.rmtree(final, ignore_errors=True)
    temporary.replace(final)
    for old in states(run)[:-STATES_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def states(run: Path) -> list[Path]:
    """The run's state folders, oldest first."""
    found = [path for path in (run / "state").glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def load_state(run: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], list[str]]:
    """The newest whole state: tensors by group, progress, and a line for each newer one that was passed over.

    Raises:
        DataError: if no state is whole, with the reason for each.
    """
    passed_over: list[str] = []
    for path in reversed(states(run)):
        try:
            return (*_read_state(path), passed_over)
        except (DataError, OSError, LookupError, TypeError, AttributeError, SafetensorError) as error:
            passed_over.append(f"{path.name}: {error}")
    raise DataError(
        f"{run} holds no state to resume from",
        "\n".join(passed_over) or "It was stopped before the first one was written.",
    )


def _read_state(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    manifest = read_json(path / "manifest.json")
    present = {file.name for file in path.iterdir()} - {"manifest.json"}
    if set(manifest["files"]) != present or not {"model.safetensors", "optimiser.safetensors"} <= present:
        raise DataError("the manifest does not name the files that are there")
    tensors = {}
    for name, expected in manifest["files"].items():
        file = path / Path(name).name
        if file.stat().st_size != expected["size"] or sha256(file) != expected["sha256"]:
            raise DataError(f"{name} is not what the manifest says")
        tensors[file.stem] = load_file(file)
    return tensors, {**manifest["progress"], "step": manifest["step"]}


# ------------------------------------------------------------------------------------------------ reading
def describe_data(dataset: Dataset) -> dict[str, Any]:
    """What env.json says of the data."""
    splits = {
        name: len(dataset.split(name))
        for name in ("train", "validation", "test")
        if name != "validation" or dataset.validation
    }
    return {
        "spec": asdict(dataset.spec),
        "hash": dataset.hash,
        "hashes": dataset.hashes,
        "binarize": dataset.binarize,
        "splits": splits,
        "note": dataset.note,
        "warning": dataset.warning,
    }


def spec_from_dict(saved: Mapping[str, Any]) -> DataSpec:
    """A DataSpec from its JSON form."""
    return DataSpec(
        name=saved["name"],
        shape=tuple(saved["shape"]),
        values=saved["values"],
        classes=tuple(saved["classes"]),
        examples=saved["examples"],
    )


def check_pinned(path: Path) -> None:
    """Check the files of a pretrained model by the hashes of its about.json.

    Raises:
        DataError: naming the first that is missing, or is not what was measured.
    """
    for name, pinned in packaged.about(path)["files"].items():
        if not (path / name).is_file() or sha256(path / name) != pinned["sha256"]:
            raise DataError(
                f"{path / name} is not the file that was measured",
                f"Its SHA-256 should be {pinned['sha256'][:12]}..., as {path / 'about.json'} says.",
                "Install diabolo again.",
            )


class Run:
    """A run directory, or a model of the package, `pretrained:NAME`, read. Everything is read when asked for; nothing is written.

    Raises:
        DataError: if the folder is no run, or what is asked for is missing or corrupt; if a pretrained model is not what its
            about.json says.
        UsageError: if the package has no model of this name.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = packaged.located(path)
        if not (self.path / "config.json").is_file():
            raise DataError(
                f"{self.path} is no run", "A run is a folder with a config.json.", "Make one with: diabolo train PRESET"
            )
        if packaged.is_packaged(self.path):
            check_pinned(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    def place(self, name: str) -> Path:
        """Where a file about it goes: into it, or for a pretrained model into the current folder."""
        return packaged.place(self.path, name)

    @cached_property
    def config_dict(self) -> dict[str, Any]:
        return read_json(self.path / "config.json")

    @cached_property
    def config(self) -> RunConfig:
        try:
            return from_dict(self.config_dict).config
        except UsageError as error:
            raise DataError(
                f"{self.path / 'config.json'} is no configuration", f"{error.what}. {error.why}", error.remedy
            ) from error

    @cached_property
    def env(self) -> dict[str, Any]:
        found = read_json(self.path / "env.json")
        data = found.get("data")
        if not isinstance(data, dict) or not isinstance(data.get("hash"), str) or "source_hash" not in found:
            raise DataError(f"{self.path / 'env.json'} does not describe a run", "It names no data and no source.")
        return found

    @property
    def data_hash(self) -> str:
        return str(self.env["data"]["hash"])

    def check_data(self, dataset: Dataset) -> None:
        """Refuse data that are not those of the run.

        Raises:
            DataError: naming both hashes.
        """
        if dataset.hash != self.data_hash:
            theirs = f"Their hash is {dataset.hash[:12]}, the run's is {self.data_hash[:12]}."
            raise DataError(f"the data are not those of {self.path}", theirs)

    @property
    def status(self) -> dict[str, Any]:
        return read_json(self.path / "status.json")

    def loss_card(self) -> dict[str, Any] | None:
        """What the loss is, as it was measured; None for a run of a diabolo that did not write it."""
        path = self.path / "loss_card.json"
        if not path.exists():
            return None
        found = read_json(path)
        if not isinstance(found.get("rows"), list) or not isinstance(found.get("when"), str):
            raise DataError(f"{path} is no loss card", remedy=f"Measure it anew: diabolo explain {self.path}")
        return found

    def metrics(self) -> list[dict[str, Any]]:
        return self._lines("metrics.jsonl", {"step", "epoch", "split", "examples"})

    def timing(self) -> list[dict[str, Any]]:
        return self._lines("timing.jsonl", {"step", "epoch", "stage", "seconds"})

    def evaluation(self) -> dict[str, Any]:
        if not (self.path / "evaluation.json").is_file():
            raise DataError(
                f"{self.path} has not been evaluated", remedy=f"Evaluate it with: diabolo evaluate {self.path}"
            )
        found = read_json(self.path / "evaluation.json")
        if not isinstance(found.get("about"), dict):
            raise DataError(
                f"{self.path / 'evaluation.json'} is no evaluation", remedy=f"Repeat it: diabolo evaluate {self.path}"
            )
        return found

    def per_image(self) -> dict[str, Tensor]:
        if packaged.is_packaged(self.path):
            why = "What was measured of each image does not come with the package."
            raise DataError(f"{self.path} cannot be compared", why, packaged.copied(self.path, "evaluate"))
        return _load_tensors(self.path / "per_image.safetensors")

    def model(self) -> Autoencoder:
        """The trained model, on the CPU, in evaluation mode."""
        return load_weights(self.path / "weights.safetensors")

    def _lines(self, name: str, keys: set[str]) -> list[dict[str, Any]]:
        path = self.path / name
        if not path.is_file():
            raise DataError(f"{path} does not exist")
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise DataError(f"{path} is corrupt", str(error)) from error
        if not all(isinstance(row, dict) and keys <= row.keys() for row in rows):
            raise DataError(f"{path} is corrupt", f"Each line must be an object with {', '.join(sorted(keys))}.")
        if not rows and self.status.get("state") == "finished":
            raise DataError(f"{path} is empty", "A finished run has rows: it was cut.")
        return rows


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except SafetensorError as error:
        raise DataError(f"{path} is corrupt", str(error)) from error


class Described(Protocol):
    """A configuration that says itself as JSON."""

    def to_dict(self) -> dict[str, Any]: ...


def save_weights(path: Path, weights: Mapping[str, Tensor], config: Described, spec: DataSpec) -> None:
    """Write weights with all that is needed to build their model, or a prior."""
    write_described(path, weights, {"schema": SCHEMA, "config": config.to_dict(), "spec": asdict(spec)})


def write_described(path: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write weights with what `read_weights` gives back."""
    # one entry: the format keeps several in no fixed order, and equal runs are to give equal bytes
    write_tensors(path, weights, {"diabolo": json.dumps(about)})


#: What the metadata of a weights file says of float32 weights that are kept in half precision, and nothing else may be.
HALF = "float16"


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a weights file and what its metadata says of them; a file that says that its float32 weights are kept in
    half precision has them back in float32.

    Raises:
        DataError: if it is missing or corrupt, does not say what it holds, or holds another precision than it says.
    """
    tensors = _load_tensors(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    try:
        about = json.loads(metadata["diabolo"])
        storage = about.get("storage")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} does not say what model it holds", f"Its metadata lacks or garbles {error}."
        ) from error
    if storage is None:
        return tensors, about
    if storage != HALF or any(t.dtype == torch.float32 for t in tensors.values()):
        raise DataError(f"{path} is not stored as it says", f"Its storage is {storage!r}; {HALF!r} is known.")
    return {name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()}, about


def check_form(path: Path, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors have the names, shapes and types of those expected.

    Raises:
        DataError: naming the first that have not.
    """
    wrong = sorted(
        k
        for k in expected.keys() | tensors.keys()
        if k not in expected or k not in tensors or _form(expected[k]) != _form(tensors[k])
    )
    if wrong:
        raise DataError(
            f"{path} does not fit its own configuration",
            f"Missing, unexpected, or of another shape or type: {', '.join(wrong[:5])}.",
        )


def _form(t: Tensor) -> tuple[torch.Size, torch.dtype]:
    return t.shape, t.dtype


def load_weights(path: Path) -> Autoencoder:
    """Build the model that a weights file describes and load it: names, shapes and types must match exactly.

    Raises:
        DataError: if the file is missing, corrupt, or does not fit the model that its metadata describes.
    """
    tensors, about = read_weights(path)
    try:
        config, spec = from_dict(about["config"]).config.to_dict(), spec_from_dict(about["spec"])
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} does not say what model it holds", f"Its metadata lacks or garbles {error}."
        ) from error
    with torch.device("meta"):
        check_form(path, build_model(config["model"], spec).state_dict(), tensors)
    with torch.random.fork_rng(devices=[]):
        model = build_model(config["model"], spec)
    model.load_state_dict(tensors)
    return model.eval()
