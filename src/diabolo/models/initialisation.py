"""Where the weights of a model start: as its layers bring them, after He et al., or fitted to the data's mean as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from diabolo.errors import UsageError
from diabolo.models.autoencoder import Autoencoder

Affine = nn.Linear | nn.Conv2d | nn.ConvTranspose2d

#: Where the log-variance of a posterior starts with init="data": narrow enough for the decoder to read the code at once.
LOG_VARIANCE = -4.0
#: What init="data" multiplies the decoder's last weights by: every code is decoded to nearly the mean at first.
LAST = 0.1


@torch.no_grad()
def initialise(model: Autoencoder, init: str, mean: Callable[[], Tensor]) -> None:
    r"""Set the weights of a model that was just built.

    `torch` leaves them as the layers bring them. `he`: :math:`W \sim N(0, 2 / fan_{in})` and biases 0 for every map that an
    activation follows, so for all but the last of a network. `data`: the same, and the encoder sees values about their mean over
    the training split, `mean()` (*data), its first bias being -W mean; the decoder starts at that mean, its last bias being what
    the likelihood turns into it, and its last weights small, a tenth of what they were; the posterior starts narrow, with
    log-variance -4. Refuses what `check_init` refuses.

    Reference: He et al., Delving deep into rectifiers (2015), arXiv:1502.01852.
    """
    check_init(model, init)
    if init == "torch":
        return
    encoder, decoder = _maps(model.encoder), _maps(model.decoder)
    for layer in (*encoder[:-1], *decoder[:-1]):
        nn.init.kaiming_normal_(layer.weight)
        _set_bias(layer, torch.zeros(()))
    if init == "data":
        _start_at(mean().flatten(), model, encoder, decoder)


def _maps(network: nn.Module) -> list[Affine]:
    return [layer for layer in network.modules() if isinstance(layer, Affine)]


def check_init(model: Autoencoder, init: str) -> None:
    """Refuse a start that a model does not have.

    Raises:
        UsageError: for `data` with a model whose maps are not fully connected, a posterior that is no Gaussian, or a likelihood
            that has no bias for a mean.
    """
    known = model.likelihood.start_at(torch.full((1,), 0.5)) is not None and model.posterior.factor == 2
    if init == "data" and not (known and all(_connected(_maps(part)) for part in (model.encoder, model.decoder))):
        raise UsageError(
            "train.init=data does not know this model",
            "It sets the first and the last bias of fully connected networks around a Gaussian posterior, for a likelihood "
            "that has a bias for every mean, as Bernoulli's have.",
            "Take train.init=he.",
        )


def _start_at(mean: Tensor, model: Autoencoder, encoder: Sequence[Affine], decoder: Sequence[Affine]) -> None:
    params = model.likelihood.start_at(mean)
    assert params is not None  # check_init has refused what has none
    _set_bias(encoder[0], -encoder[0].weight @ mean)
    _set_bias(decoder[-1], params)
    decoder[-1].weight.mul_(LAST)
    _set_bias(encoder[-1], torch.tensor([0.0, LOG_VARIANCE]).repeat_interleave(encoder[-1].weight.shape[0] // 2))


def _connected(maps: Sequence[Affine]) -> bool:
    return bool(maps) and all(isinstance(layer, nn.Linear) for layer in maps)


def _set_bias(layer: Affine, bias: Tensor) -> None:
    if layer.bias is not None:
        layer.bias.copy_(bias)
