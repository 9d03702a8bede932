"""The verb that scores closed-form linear models of a data set: linear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table

from diabolo import config, listings
from diabolo.errors import UsageError
from diabolo.options import DataOptions, Imports, Json, import_modules
from diabolo.verbs.shared import Answer, at_least, progress

if TYPE_CHECKING:
    from diabolo.data.spec import Dataset
    from diabolo.linear import Line, Lines

#: Where neither is given: the latents of the lines with a given sigma^2, and that of a loss of summed squared errors.
_LATENTS, _VARIANCE = (20, 256), 0.5


def linear(
    data: Annotated[str, Parameter(help="A data set of images (see `diabolo data list`), or folder:PATH.")],
    /,
    *params: Annotated[str, Parameter(help="key=value of the data set, for example data.validation=0")],
    latent: Annotated[
        tuple[int, ...],
        Parameter(help="Latent dimensions of probabilistic PCA; may be repeated. 20, 64, 128, 256, 512 and 1024."),
    ] = (),
    variance: Annotated[
        tuple[float, ...],
        Parameter(
            help="A given sigma^2, beside that of maximum likelihood, for each --latent (20 and 256 where there is none); may be "
            f"repeated. {_VARIANCE:g}, which a loss of summed squared errors implies."
        ),
    ] = (),
    import_: Imports = (),
    as_json: Json = False,
    options: DataOptions = DataOptions(),
) -> Answer:
    """Score Gaussians in closed form on a data set: probabilistic PCA and the full covariance, what a network has to beat.

    Fitted to the training split, exact on the test split, in nats per image, bits per dimension and decibels.
    """
    _check(latent, variance)
    import_modules(import_)
    component = config.resolve("vae", [f"data={data}", *map(_key, params)]).config.data
    from diabolo import linear as models
    from diabolo.data import load

    dataset = load(component.name, component.params, options.access())
    free, given = (_fitting(dataset, latent, default) for default in (models.LATENTS, _LATENTS))
    with progress() as shown:
        shown.say(f"fitting Gaussians to {len(dataset.train):,} images of {dataset.spec.dimensions:,} values")
        found = models.lines(dataset, free, list(product(given, variance or (_VARIANCE,))))
    return Answer(data=found.to_dict()) if as_json else Answer(_told(found, dataset))


def _key(text: str) -> str:
    """data.validation=0, or shorter validation=0."""
    return text if text.startswith("data.") else f"data.{text}"


def _check(latents: Sequence[int], variances: Sequence[float]) -> None:
    for latent in latents:
        at_least("--latent", latent, 1)
    for variance in variances:
        if not 0 < variance < math.inf:
            raise UsageError(f"--variance {variance:g} is refused", "It must be greater than 0.")


def _fitting(dataset: Dataset, latents: Sequence[int], otherwise: Sequence[int]) -> Sequence[int]:
    """The latents that were asked for, all of which must be fewer than there are values; or those of `otherwise` that are."""
    values = dataset.spec.dimensions
    if latents and max(latents) >= values:
        raise UsageError(
            f"--latent {max(latents)} is refused", f"An image of {dataset.spec.name} has {values:,} values: take fewer."
        )
    return latents or [latent for latent in otherwise if latent < values]


# ------------------------------------------------------------------------------------------------ what is printed
def _told(found: Lines, dataset: Dataset) -> tuple[str | Table, ...]:
    from diabolo.linear import DEQUANTIZED, GRID

    shares = ", ".join(f"{100 * share:.2f}" for share in found.shares(6))
    kind = listings.kind_of_values(dataset.spec.values, dataset.spec.shape)
    return (
        f"data {found.data}, {kind} values, D = {found.eigenvalues.numel():,}: fitted to the train split "
        f"(n = {found.fitted_to:,}), scored on the test split (n = {found.n:,})",
        f"  covariance at x = k/255: total variance {found.eigenvalues.sum().item():.2f}; {found.above(0.5)} eigenvalues above "
        f"1/2, {found.above(1.0)} above 1; the largest have {shares} % of it",
        f"\n{GRID.told}; not ranked with models, for it is no code length",
        _table(found.grid),
        f"\n{DEQUANTIZED.told}: the convention that models are ranked in",
        _table(found.dequantized),
        *(f"  left out: {line.name} ({line.convention}): {line.reason}" for line in found.left_out),
        "\n  NLL: nats/image of a density, exact, +- standard error over images; bits/dim: NLL / (D log 2) + 8",
        "  rate: of the exact posterior, nats, over the training images; KL: the same over the test images",
        "  SSE: summed squared error/image at z drawn, in expectation; SSE + KL: the loss less its constant at sigma^2 = 1/2",
        "  PSNR: dB, of the mean at z = mu; projection: of the projection on as many axes, which does not shrink",
    )


def _table(lines: Sequence[Line]) -> Table:
    rows = listings.table(
        "model", "NLL", "bits/dim", "sigma^2", "rate", "KL", "SSE", "SSE + KL", "PSNR", "projection", "active"
    )
    for line in lines:
        rows.add_row(
            line.name,
            f"{line.nll:.2f} +- {line.nll_se:.2f}",
            f"{line.bits_per_dim:.4f} +- {line.bits_se:.4f}",
            _shown(line.variance, 6),
            *(_shown(value, 1) for value in (line.rate, line.kl)),
            *(_shown(value, 2) for value in (line.sse, line.sse_and_kl, line.psnr, line.psnr_projection)),
            "-" if line.latent is None else f"{line.active}/{line.latent}",
        )
    return rows


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


VERBS = (linear,)
