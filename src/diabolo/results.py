"""What the library returns: a run with its figures, an evaluation with its numbers. Each shows itself in a notebook.

Shown are `_repr_html_`, `_repr_svg_` and `_repr_png_`, which notebooks look for by name; nothing of them is imported.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from diabolo import data as data_module
from diabolo import fitted, inspection, pictures, plots, runs, sampling, tables
from diabolo.data import Dataset, Loader
from diabolo.errors import DataError, UsageError
from diabolo.prior_config import OWN
from diabolo.recorded import shown_k

#: The quantities that training logs for every epoch.
QUANTITIES = ("loss", "distortion", "rate")
#: A picture smaller than this is enlarged in a notebook, as far as a whole factor fits.
SHOWN_PIXELS = 480


# ------------------------------------------------------------------------------------------------ numbers
@dataclass(frozen=True)
class Number:
    """A measured value with its standard error (None where there is none), unit, number of examples and split."""

    value: float
    se: float | None
    unit: str
    n: int
    split: str

    def __str__(self) -> str:
        se = "" if self.se is None else f" +- {self.se:.4g}"
        return f"{self.value:.6g}{se} {self.unit}, {self.split} split, n = {self.n:,}"


class Evaluation(Mapping[str, Any]):
    """An evaluation as it stands in evaluation.json, {metric: {value, se, n, unit, split}} with `about`.

    A metric with a value is an attribute, too: `found.elbo.value` is `found["elbo"]["value"]`.
    """

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._found = dict(found)

    def __getitem__(self, name: str) -> Any:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __getattr__(self, name: str) -> Number:
        if name.startswith("_") or name not in self._names():
            raise AttributeError(f"this evaluation has no number {name!r}; it has: {', '.join(self._names())}")
        return self._number(name)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._names()]

    def _names(self) -> list[str]:
        return [name for name, metric in self._found.items() if name != "about" and "value" in metric]

    def _number(self, name: str) -> Number:
        metric = self._found[name]
        split = metric.get("split", self._found["about"]["split"])
        return Number(metric["value"], metric.get("se"), metric["unit"], metric["n"], split)

    def _heading(self) -> str:
        about = self._found["about"]
        label = "" if about["normalised"] else ", unnormalised"
        smoke = "smoke run, its numbers mean nothing: " if about.get("smoke") else ""
        return f"{smoke}data {about['data']}, {about['split']} split, likelihood {about['likelihood']}{label}"

    def _rows(self) -> list[tuple[str, ...]]:
        """Metric (and its K), value, standard error, unit, n, the usual metrics first."""
        return [
            (self._label(row["name"]), _ascii(row["text"]), _ascii(row["se"]) or "-", row["unit"], row["n"])
            for row in tables.metric_rows(self._found)
        ]

    def _label(self, name: str) -> str:
        return f"{name} (K = {shown_k(self._found[name]['k'])})" if "k" in self._found[name] else name

    def __repr__(self) -> str:
        rows = [("metric", "value", "+- se", "unit", "n"), *self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows)]
        aligned = (
            f"{name:{widths[0]}}  {value:>{widths[1]}}  {se:>{widths[2]}}  {unit:{widths[3]}}  {n:>{widths[4]}}"
            for name, value, se, unit, n in rows
        )
        return "\n".join((f"Evaluation: {self._heading()}", *aligned))

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("metric", "value", "&plusmn; se", "unit", "n"))
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in self._rows())
        return f"<table><caption>{escape(self._heading())}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _ascii(text: str) -> str:
    return text.replace("\u2212", "-")


# ------------------------------------------------------------------------------------------------ figures
@dataclass(frozen=True)
class Drawing:
    """A figure as SVG; `about` says what it shows."""

    svg: str = field(repr=False)
    about: str

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> Path:
        """Write it as an .svg file.

        Raises:
            UsageError: for another kind of file, or a place that cannot be written to.
        """
        return _saved(Path(path), ".svg", self.svg.encode("utf-8"))


@dataclass(frozen=True)
class Picture:
    """Images as PNG; `about` says what they show."""

    png: bytes = field(repr=False)
    about: str

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """The bytes, and the size to show them in: small images are enlarged by a whole number."""
        width, height = (int.from_bytes(self.png[at : at + 4], "big") for at in (16, 20))  # the PNG's header
        times = max(1, SHOWN_PIXELS // max(width, height))
        return self.png, {"width": times * width, "height": times * height}

    def save(self, path: str | Path) -> Path:
        """Write it as a .png file.

        Raises:
            UsageError: for another kind of file, or a place that cannot be written to.
        """
        return _saved(Path(path), ".png", self.png)


def _saved(path: Path, suffix: str, content: bytes) -> Path:
    if path.suffix.lower() != suffix:
        raise UsageError(f"{path} is refused", f"Its name must end in {suffix}.")
    runs.write_bytes(path, content)
    return path


# ------------------------------------------------------------------------------------------------ the run
class Run(runs.Run):
    """A run directory that shows itself: `curves()`, `samples(n)` and `reconstructions(n)` are figures with `save(path)`.

    Arguments:
        path: the run directory.
        data: the data of a run that was trained on arrays; `diabolo.train` passes them on.
    """

    def __init__(self, path: str | Path, data: Dataset | None = None) -> None:
        super().__init__(path)
        if data is not None:
            self.check_data(data)
        self._data = data

    def curves(self, quantity: str = "loss") -> Drawing:
        """`loss`, `distortion` or `rate` after each epoch, nats per example: training solid, held-out examples dashed.

        Raises:
            UsageError: for another quantity.
            DataError: if no epoch has ended.
        """
        if quantity not in QUANTITIES:
            raise UsageError(f"there is no curve of {quantity!r}", f"Accepted: {', '.join(QUANTITIES)}.")
        curves = plots.curves_of(self.metrics(), quantity)
        if not curves:
            raise DataError(f"{self.path} has no curve of {quantity}", "No epoch with one has ended.")
        held_out = self.config.train.curve
        lines = "train solid" if held_out == "none" else f"train solid, {held_out} dashed"
        about = f"{quantity} of {self.name} against the epoch, {lines}, {self._unit}"
        figure = plots.epoch_curves(curves, f"{quantity}, {self._unit}")
        key = f"curve-{zlib.crc32(str((self.path, quantity)).encode()):08x}"  # a name may hold what an id may not
        return Drawing(_standing_alone(plots.svg(figure, key, about)), about)

    def samples(self, n: int = 16, *, seed: int = 0, temperature: float = 1.0) -> Picture:
        """n decoder means at z ~ p(z), of the prior fitted last where there is one: the picture of `diabolo sample`.

        Raises:
            UsageError: if n is below 1, or the data are vectors.
        """
        _at_least_one(n)
        name = fitted.chosen(self, None)
        images = sampling.means(fitted.model_of(self, name), n, seed, temperature=temperature)
        whence = "prior" if name == OWN else f"prior {name}"
        return Picture(
            pictures.sample_grid(images),
            f"{n} decoder means of {self.name}, z ~ {whence}, temperature {temperature:g}, seed {seed}",
        )

    def reconstructions(self, n: int = 16, *, seed: int = 0, split: str = "test") -> Picture:
        """n random examples of a split, each over its reconstruction at z = mu: the picture of `diabolo reconstruct`.

        Raises:
            UsageError: if n is below 1, or the data are vectors.
            DataError: if the data cannot be had: arrays are known only to the run that `diabolo.train` returned.
        """
        _at_least_one(n)
        pairs = inspection.reconstructions(self.model(), Loader(self._dataset(), split), n=n, seed=seed)
        shown = pairs.shape[1]
        png = inspection.grid(inspection.in_lines(pairs, min(shown, 16)))
        return Picture(png, f"{shown} random examples of {self.name}, {split} split, over z = mu, seed {seed}")

    @property
    def in_memory(self) -> Dataset | None:
        """The arrays that the run was trained on, where it still has them."""
        return self._data

    def _dataset(self) -> Dataset:
        if self._data is not None:
            return self._data
        found = data_module.load(self.config.data.name, self.config.data.params)
        self.check_data(found)
        return found

    @property
    def _unit(self) -> str:
        return "nats/image" if len(self.env["data"]["spec"]["shape"]) == 3 else "nats/example"

    def _heading(self) -> str:
        status, epochs = self.status, self.config.train.epochs
        smoke = ", smoke run: its numbers mean nothing" if self.config.train.smoke else ""
        return f"{status['state']}, preset {self.config.preset}, epoch {status.get('epoch', '?')} of {epochs}{smoke}"

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}): {self._heading()}"

    def _repr_html_(self) -> str:
        title = f"<p><b>{escape(self.name)}</b>: {escape(self._heading())}</p>"
        return f"<div>{title}{self._curve()}<p>{self._report()}</p></div>"

    def _curve(self) -> str:
        try:
            drawn = self.curves()
        except DataError:
            return "<p>No epoch has ended yet: there is no curve.</p>"
        return f'<div style="max-width:22em">{drawn.svg}</div><p>{escape(drawn.about)}</p>'

    def _report(self) -> str:
        report = self.path / "report.html"
        if report.is_file():
            return f'<a href="{escape(report.as_posix(), quote=True)}">report</a>'
        return f"<code>{escape(str(self.path))}</code>: no report yet"


def _at_least_one(n: int) -> None:
    if n < 1:
        raise UsageError(f"n={n} is refused", "It must be at least 1.")


def _standing_alone(svg: str) -> str:
    """A report's SVG as a document of its own: of its drawn size, dark on white wherever it is shown."""
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    width, height = size.groups() if size else ("310", "238")
    style = "max-width:100%;height:auto;background:#fff;color:#222;font-family:sans-serif"
    start = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}pt" height="{height}pt" style="{style}"'
    return svg.replace("<svg", start, 1)
