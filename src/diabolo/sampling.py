"""Images that a run makes, as the levels 0..255 that a picture file would hold: drawn from its prior, or reconstructed.

`draw` is the one place that decides how a run is drawn from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diabolo import fitted
from diabolo.data import Loader
from diabolo.data.spec import DataSpec
from diabolo.engine import own_randomness, seeded
from diabolo.errors import UsageError
from diabolo.metrics import examples_at_a_time
from diabolo.models.autoencoder import Autoencoder
from diabolo.progress import Progress
from diabolo.runs import Run
from diabolo.seeds import fold

_CPU = torch.device("cpu")
#: Images that are decoded at a time.
_BATCH = 250


def check_levels(spec: DataSpec) -> None:
    """Refuse data that are not images of levels k/255.

    Raises:
        UsageError: which names what they are.
    """
    if spec.values != "grey" or len(spec.shape) != 3:
        raise UsageError(
            f"samples of {spec.name} cannot be measured",
            f"Its values are {spec.values}, of shape {spec.shape}; images of levels k/255 are needed.",
        )


def to_levels(x: Tensor) -> Tensor:
    """Values in [0, 1] as uint8 levels, to the nearest, on the CPU; what lies outside is clamped, as in a picture file."""
    return (x.detach().double().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def each_in_turn(n: int, classes: int) -> Tensor:
    """Class numbers (n,) of which every class has as many as n allows: 0, 1, ..., classes - 1, 0, 1, ..."""
    return torch.arange(n) % classes


def means(
    model: Autoencoder,
    n: int,
    seed: int,
    y: Tensor | None = None,
    *,
    temperature: float = 1.0,
    guidance: float = 1.0,
    device: torch.device = _CPU,
    progress: Progress | None = None,
) -> Tensor:
    """n decoder means (n, *shape) at z ~ p(z), or z ~ p(z | y) for classes y (n,). Whole batches of 250 do not depend on n.

    Raises:
        UsageError: if the model has no prior, or its prior knows no classes, no guidance or no temperature that is asked of it.
    """
    if y is not None and not getattr(model.prior, "classes", 0):
        raise UsageError(
            "this prior cannot be drawn from by class",
            "It knows no classes.",
            "Name one that does with prior=NAME, or fit one: diabolo fit-prior RUN prior=flow_matching",
        )
    progress = progress or Progress()
    progress.start("samples", n)
    parts = []
    with own_randomness(device):
        for number, start in enumerate(range(0, n, _BATCH)):
            seeded(device, fold(seed, "sample", number))
            count = min(_BATCH, n - start)
            classes = None if y is None else y[start : start + count].to(device)
            try:
                drawn = model.sample(count, classes, temperature=temperature, guidance=guidance)
            except NotImplementedError as error:
                remedy = "Leave that out, or name another prior of the run with prior=NAME."
                raise UsageError("this prior cannot be drawn from so", str(error), remedy) from error
            parts.append(drawn.mean[0].cpu())
            progress.advance(count)
    progress.finish()
    return torch.cat(parts)


def draw(
    run: Run,
    n: int,
    seed: int,
    classes: Tensor | None = None,
    guidance: float = 1.0,
    *,
    prior: str,
    device: torch.device,
    progress: Progress | None = None,
) -> Tensor:
    """The `means` of a run with one of its priors (see `fitted`), as levels (n, *shape) uint8.

    Raises:
        UsageError: as `means`.
        DataError: if the prior was fitted to the codes of other weights.
    """
    model = fitted.model_of(run, prior).to(device)
    return to_levels(means(model, n, seed, classes, guidance=guidance, device=device, progress=progress))


def reconstruct(
    run: Run, loader: Loader, indices: Tensor, *, device: torch.device, progress: Progress | None = None
) -> Tensor:
    """The decoder's means at z = mu of the examples `indices` (n,) of a split, as levels (n, *shape) uint8."""
    model, progress = run.model().to(device), progress or Progress()
    progress.start("reconstructions", len(indices))
    parts = []
    with torch.no_grad():
        for batch in loader.ordered(examples_at_a_time(model, loader.values.shape[1], _BATCH), indices):
            parts.append(to_levels(model.reconstruct(batch.x.to(device)).mean[0]))
            progress.advance(len(parts[-1]))
    progress.finish()
    return torch.cat(parts)
