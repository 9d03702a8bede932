"""How much one run says: the article's networks trained by a plain script, several seeds each.

A script on its own (it shares only the data files with the package), so that the package's numbers have something to be held
against: same architecture, same optimiser, same 10 epochs, own initialisation, own order, own estimators.
Usage: python benchmarks/seed_spread.py OUT.json [cpu|cuda]
"""

from __future__ import annotations

import json
import math
import platform
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from diabolo import data

#: (hidden width, latent dimensions, one linear layer for mean and log-variance or two) -> seeds
PLAN = {(400, 20, False): 6, (400, 20, True): 6, (200, 20, False): 3, (400, 10, False): 3}
LOG_P_IMAGES, K, DRAWS = 2000, 1000, 10


class PlainVAE(nn.Module):
    """784-h-h-d-h-h-784; with `one`, mean and log-variance come from one layer of twice the size."""

    def __init__(self, h, d, one):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(h, 2 * d)] if one else [nn.Linear(h, d), nn.Linear(h, d)])
        self.decoder = nn.Sequential(nn.Linear(d, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, 784))

    def posterior(self, x):
        h = self.encoder(x)
        return torch.cat([head(h) for head in self.heads], 1).chunk(2, 1)


def train(seed, h, d, one, images, device):
    torch.manual_seed(seed)
    model = PlainVAE(h, d, one).to(device)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    for _ in range(10):
        for rows in torch.randperm(len(images), device=device).split(128):
            x = images[rows].float() / 255
            mean, log_variance = model.posterior(x)
            z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            bce = F.binary_cross_entropy_with_logits(model.decoder(z), x, reduction="sum")
            kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
            optimiser.zero_grad()
            ((bce + kl) / len(x)).backward()
            optimiser.step()
    return model


def log_weights(model, x, draws):
    """log p(x | z) + log p(z) - log q(z | x) on grey levels, (draws, B)."""
    mean, log_variance = model.posterior(x)
    sd = torch.exp(0.5 * log_variance)
    noise = torch.randn(draws, *mean.shape, device=x.device)
    z = mean + sd * noise
    logits = model.decoder(z)
    log_likelihood = (x * logits - F.softplus(logits)).sum(-1)
    return log_likelihood - 0.5 * (z**2).sum(-1) + 0.5 * (noise**2).sum(-1) + sd.log().sum(-1)


@torch.no_grad()
def measure(model, images):
    x = images.float() / 255
    elbo = torch.cat([log_weights(model, part, DRAWS).mean(0) for part in x.split(1000)])
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:LOG_P_IMAGES].to(x.device)
    log_p = torch.cat([torch.logsumexp(log_weights(model, x[i], K), 0) - math.log(K) for i in chosen.split(100)])
    gap, mean = log_p - elbo[chosen], model.posterior(x)[0]
    return {
        "elbo": elbo.mean().item(),
        "elbo_se": elbo.std().item() / math.sqrt(len(elbo)),
        "gap": gap.mean().item(),
        "gap_se": gap.std().item() / math.sqrt(len(gap)),
        "mse_mean": (model.decoder(mean).sigmoid() - x).square().mean().item(),
        "active_units": int((mean.var(0) > 0.01).sum()),
    }


def main(out, device="cuda"):
    mnist = data.load("mnist", {"binarize": False, "validation": 0})
    images, test = (split.values.flatten(1).to(device) for split in (mnist.train, mnist.test))
    rows = []
    for (h, d, one), seeds in PLAN.items():
        for seed in range(seeds):
            model = train(seed, h, d, one, images, device)
            rows.append({"hidden": h, "latent": d, "one_output_layer": one, "seed": seed, **measure(model, test)})
            print(rows[-1], flush=True)
    about = {
        "data": "MNIST, grey, test split, n = 10,000; gap on 2,000 of them, K = 1,000",
        "unit": "nats/image, unnormalised (summed binary cross-entropy on grey levels)",
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    Path(out).write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
