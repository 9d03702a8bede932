"""Model 1 in pythae: trained by its `TrainingPipeline`, log p(x) by its `get_nll`; nothing of it is replaced.

The networks are given as pythae asks for them, as its encoder and decoder; only the callback that reads the clock is added.
"""

from __future__ import annotations

import logging
import tempfile
import time
from typing import Any

import numpy as np
import torch
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.pipelines import TrainingPipeline
from pythae.trainers import BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import nn

import diabolo
from benchmarks.scripts import article_mnist
from benchmarks.speed.emitting import emit, orders


class Encoder(BaseEncoder):
    def __init__(self):
        super().__init__()
        plain = article_mnist.VAE()
        self.layers, self.mean, self.log_variance = plain.encoder, plain.mean, plain.log_variance

    def forward(self, x):
        h = self.layers(x.flatten(1))
        return ModelOutput(embedding=self.mean(h), log_covariance=self.log_variance(h))


class Decoder(BaseDecoder):
    def __init__(self):
        super().__init__()
        self.layers = article_mnist.VAE().decoder

    def forward(self, z):
        return ModelOutput(reconstruction=self.layers(z).unflatten(1, (1, 28, 28)))


class Clock(TrainingCallback):
    """Tells the seconds of each epoch."""

    def __init__(self) -> None:
        self.epoch, self.began = 0, 0.0

    def on_epoch_begin(self, training_config: Any, **kwargs: Any) -> None:
        self.epoch, self.began = self.epoch + 1, time.perf_counter()

    def on_epoch_end(self, training_config: Any, **kwargs: Any) -> None:
        emit(epoch=self.epoch, seconds=time.perf_counter() - self.began)


def model() -> VAE:
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce")
    return VAE(model_config=config, encoder=Encoder(), decoder=Decoder())


def train(given: dict[str, Any]) -> None:
    torch.manual_seed(given["seed"])
    images = torch.from_numpy(np.load(given["path"])["train"][: given["images"]]).unsqueeze(1).float() / 255
    with tempfile.TemporaryDirectory() as out:
        training = BaseTrainerConfig(
            output_dir=out,
            num_epochs=given["epochs"],
            learning_rate=1e-3,
            per_device_train_batch_size=128,
            seed=given["seed"],
            no_cuda=True,
        )
        TrainingPipeline(model=model(), training_config=training)(train_data=images, callbacks=[Clock()])


def log_p(given: dict[str, Any]) -> None:
    """With the weights of the run that the other rows measure."""
    vae = model()
    copy_weights(diabolo.load(given["run"]), vae)
    images = torch.from_numpy(np.load(given["path"])["images"]).unflatten(1, (1, 28, 28)).float() / 255
    torch.manual_seed(given["seed"])
    began = time.perf_counter()
    with torch.no_grad():
        mean = vae.get_nll(images, n_samples=given["k"], batch_size=given["batch"])
    emit(images=len(images), seconds=time.perf_counter() - began, mean=float(mean))


@torch.no_grad()
def copy_weights(trained: nn.Module, vae: VAE) -> None:
    """diabolo's last encoder layer gives mean and log-variance together, the article's networks have a layer for each."""
    *encoder, weight, bias = trained.encoder.parameters()
    heads = (vae.encoder.mean, vae.encoder.log_variance)
    for head, w, b in zip(heads, weight.chunk(2), bias.chunk(2)):
        head.weight.copy_(w)
        head.bias.copy_(b)
    into = [*vae.encoder.layers.parameters(), *vae.decoder.layers.parameters()]
    for mine, theirs in zip(into, [*encoder, *trained.decoder.parameters()], strict=True):
        mine.copy_(theirs)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    {"train": train, "log_p": log_p}[orders()["what"]](orders())
