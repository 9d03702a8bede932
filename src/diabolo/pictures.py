"""What a report shows of a model: real, reconstructed and generated images, all decoder means."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from diabolo.data import Dataset, Loader
from diabolo.engine import own_randomness, seeded
from diabolo.errors import UsageError
from diabolo.models.autoencoder import Autoencoder
from diabolo.plots import image_png
from diabolo.report import Pictures
from diabolo.seeds import fold


def shared_noise(n: int, latent: int, seed: int) -> Tensor:
    """n standard normal vectors (n, latent); a smaller latent gets the first coordinates of a larger one's."""
    columns = [torch.randn(n, generator=torch.Generator().manual_seed(fold(seed, "picture", j))) for j in range(latent)]
    return torch.stack(columns, 1)


def random_examples(loader: Loader, n: int, seed: int) -> Tensor:
    """n examples of a split (n, *data), or all where there are fewer, chosen and ordered by the seed alone."""
    order = torch.randperm(len(loader), generator=torch.Generator().manual_seed(fold(seed, "pictures")))
    return next(iter(loader.ordered(n, indices=order[:n]))).x


@torch.no_grad()
def pictures(model: Autoencoder, dataset: Dataset, *, n: int = 64, seed: int = 0, split: str = "test") -> Pictures:
    """n random images of a split, their reconstructions at z = mu, and n decoder means at z ~ p(z), where there is a prior.

    Which images and which z depend on the seed alone, so that models can be compared picture by picture; of a prior that is no
    Gaussian of independent values, z depends on the prior, too.
    """
    loader = Loader(dataset, split)
    real = random_examples(loader, n, seed)
    return Pictures(
        real=real,
        reconstructed=model.reconstruct(real).mean[0],
        generated=_generated(model, n, seed),
        seed=seed,
    )


def _generated(model: Autoencoder, n: int, seed: int) -> Tensor | None:
    prior = model.prior()
    if prior is None:
        return None
    if not (isinstance(prior, Independent) and isinstance(prior.base_dist, Normal)):  # no noise that models could share
        device = next(model.parameters()).device
        with own_randomness(device):
            seeded(device, fold(seed, "picture"))
            return model.sample(n).mean[0]
    noise = shared_noise(n, prior.event_shape.numel(), seed).unflatten(1, prior.event_shape)
    z = prior.mean + prior.stddev * noise
    return model.decode(z[None]).mean[0]


def sample_grid(images: Tensor, columns: int = 0) -> bytes:
    """A PNG of images (n, C, H, W) in rows of `columns`, or as near a square as n allows.

    Raises:
        UsageError: if the data are vectors rather than images.
    """
    if images.ndim != 4:
        raise UsageError("this model's data are vectors, not images", "There is no picture of them.")
    return image_png(images, columns=columns or math.ceil(math.sqrt(len(images))))


@torch.no_grad()
def filters(model: Autoencoder, n: int) -> Tensor:
    """The encoder's first affine map as images (n, C, H, W) in [0, 1]: the rows of largest norm, largest first.

    Each is scaled by its own largest absolute weight, so that 0.5 is no weight, 1 and 0 the largest positive or negative one.

    Raises:
        UsageError: if the encoder begins with no affine map of images, or has fewer than n such rows.
    """
    shape = tuple(getattr(model.encoder, "in_shape", ()))
    first = next((part for part in model.encoder.modules() if isinstance(part, (nn.Linear, nn.Conv2d))), None)
    if not isinstance(first, nn.Linear) or len(shape) != 3 or first.in_features != math.prod(shape):
        raise UsageError(
            "this encoder does not begin with an affine map of images", remedy="Take one with mlp or layer."
        )
    if n > first.out_features:
        raise UsageError(f"{n} filters are asked for, the first layer has {first.out_features}")
    order = first.weight.norm(dim=1).argsort(descending=True, stable=True)
    rows = first.weight[order[:n]].cpu()
    largest = rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    shown: Tensor = (0.5 + 0.5 * rows / largest).unflatten(1, shape)
    return shown
