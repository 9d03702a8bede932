"""Made-up numbers and run folders of the CIFAR-10 chapter: consistent with one another, quick to write, nothing trained."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from diabolo.report import Pictures
from test_report import FakeRun, make_fake_run

SHAPE = (3, 32, 32)
D = math.prod(SHAPE)
N = 80
#: Name -> network, width, latents, active units, sigma (None: the article's), SSE, KL; as five epochs might give.
RUNS = {
    "c1": ("mlp", 400, 20, 18, None, 75.0, 21.0),
    "c2": ("mlp", 400, 256, 24, None, 70.0, 23.0),
    "c3": ("mlp", 2048, 256, 25, None, 66.0, 24.0),
    "c4": ("conv", 32, 256, 31, None, 60.0, 25.0),
    "c2-optimal": ("mlp", 400, 256, 110, 0.11, 37.0, 200.0),
    "c4-optimal": ("conv", 32, 256, 190, 0.085, 22.0, 330.0),
    "c5-leaky": ("conv", 32, 256, 33, None, 59.0, 26.0),
    "c5-leaky-optimal": ("conv", 32, 256, 195, 0.084, 21.5, 335.0),
    "c5-asymmetric": ("conv", 32, 256, 12, None, 140.0, 12.0),
    "c2-optimal-seed1": ("mlp", 400, 256, 111, 0.11, 37.1, 201.0),
    "c2-optimal-seed2": ("mlp", 400, 256, 109, 0.11, 36.9, 199.0),
    "c2-optimal-permuted": ("mlp", 400, 256, 112, 0.11, 37.05, 200.0),
    "c4-optimal-permuted": ("conv", 32, 256, 150, 0.12, 45.0, 260.0),
}
QUICK = ("c1", "c2", "c4", "c4-optimal")


def nats(sse, variance):
    """-log p(x | z) of a Gaussian."""
    return sse / (2 * variance) + D / 2 * math.log(2 * math.pi * variance)


def bits(negative_log_density):
    return negative_log_density / (D * math.log(2)) + 8


def entry(values, unit="nats/image", **more):
    se = float(values.std()) / math.sqrt(len(values))
    return {"value": float(values.mean()), "se": se, "n": len(values), "unit": unit, "split": "test", **more}


def make_run(folder, name, ess=2.0, epochs=5, n=N, row=None):
    """A run directory whose evaluation agrees with its per-image values; `row`: what `RUNS` has of others."""
    network, width, latent, active, sigma, sse, kl = row or RUNS[name]
    path = make_fake_run(folder, name, normalised=True, n=n, subset=20).path
    run, variance = FakeRun(path), 0.5 if sigma is None else sigma**2
    g = torch.Generator().manual_seed(5)  # the same images for all runs
    hard = 1 + 0.3 * torch.rand(n, generator=g, dtype=torch.float64)
    errors = sse / D * hard / hard.mean()
    kls = kl + torch.rand(n, generator=g, dtype=torch.float64)
    sampled = errors * 1.02
    elbo = -(nats(D * sampled, variance) + kls)
    per_image = {
        **run.per_image(),
        **{"elbo": elbo, "kl": kls, "distortion": -elbo - kls, "mse_mean": errors, "mse_sample": sampled},
        "mean": torch.randn(n, min(latent, 20), generator=g),
    }
    save_file({key: t.contiguous() for key, t in per_image.items()}, path / "per_image.safetensors")
    own_bits = torch.tensor([bits(-float(v)) for v in elbo])
    best = float(sampled.mean())
    calibrated = torch.tensor([bits(nats(D * float(s), best) + float(k)) for s, k in zip(sampled, kls)])
    se = 10 / math.log(10) * float(errors.std()) / math.sqrt(n) / float(errors.mean())
    decibel = {"value": -10 * math.log10(float(errors.mean())), "se": se, "n": n, "unit": "dB", "split": "test"}
    found = run.evaluation()
    likelihood = "gaussian" if sigma is None else "gaussian_optimal"
    found["about"] |= {"data": "cifar10", "values": "grey", "likelihood": likelihood, "family": "gaussian"}
    found["about"] |= {"normalised": True, "sigma": math.sqrt(variance), "entropy_floor": None, "draw_hash": None}
    found |= {
        "elbo": entry(elbo, samples=10, mc_se=0.01),
        "kl": entry(kls),
        "distortion": entry(-elbo - kls),
        "mse_mean": entry(errors, "squared error/pixel"),
        "mse_sample": entry(sampled, "squared error/pixel"),
        "psnr": decibel,
        "ssim": entry(0.5 + 0.1 * hard, "SSIM"),
        "bits_per_dim": entry(own_bits, "bits/dim"),
        "bits_per_dim_calibrated": entry(calibrated, "bits/dim", sigma=math.sqrt(best), fitted_to=50_000),
        "active_units": {**found["active_units"], "value": active, "of": latent},
    }
    found["log_p"] |= {"value": found["elbo"]["value"] + 3, "ess_median": ess, "n": 20}
    net = {"name": network, "width": width, "depth": 2, "activation": "relu"}
    config = run.config_dict
    config |= {"data": {"name": "cifar10", "validation": 0, "permuted": name.endswith("permuted")}}
    config["train"] |= {"epochs": epochs}
    config["model"] |= {"latent": latent, "encoder": net, "decoder": net, "likelihood": {"name": likelihood}}
    env = run.env
    env["data"] |= {"spec": {"shape": list(SHAPE), "classes": [f"class{i}" for i in range(10)]}}
    for file, content in (("evaluation", found), ("config", config), ("env", env)):
        (path / f"{file}.json").write_text(json.dumps(content), encoding="utf-8")
    return run


# ------------------------------------------------------------------------------------------------ lines in closed form
def eigenvalues():
    """A spectrum like that of CIFAR-10: 36 above 1/2."""
    rank = torch.arange(1, D + 1, dtype=torch.float64)
    return (55 * rank**-1.31).tolist()


def make_line(latent, variance, fitted, nll=None):
    """A line whose numbers agree: nll = SSE / (2 sigma^2) + D/2 log(2 pi sigma^2) + KL."""
    if latent is None:
        return {"latent": None, "variance": None, "fitted": True, "nll": -7177.72, "nll_se": 19.4} | {
            **{"bits_per_dim": 4.6419, "bits_se": 0.0085, "n": 10_000, "rate": None, "kl": None, "sse": None},
            **{"psnr": None, "psnr_projection": None, "sse_and_kl": None, "active": None},
        }
    values = torch.tensor(eigenvalues(), dtype=torch.float64)
    used = values[:latent][values[:latent] > variance]
    kl = float(0.5 * (used / variance).log().sum())
    sse = len(used) * variance + float(values.sum() - used.sum())
    if nll is not None:
        sse = 2 * variance * (nll - kl - D / 2 * math.log(2 * math.pi * variance))
    found = nats(sse, variance) + kl
    return {
        **{"latent": latent, "variance": variance, "fitted": fitted, "nll": found, "nll_se": 0.29, "n": 10_000},
        **{"bits_per_dim": bits(found), "bits_se": 0.0042, "rate": kl, "kl": kl, "sse": sse, "sse_and_kl": sse + kl},
        **{"psnr": -10 * math.log10(sse / D) + 0.1, "psnr_projection": 25.82 if latent == 256 else 18.0},
        "active": len(used),
    }


def linear_numbers():
    rows = [
        make_line(20, 0.5, False, nll=78.5176 + D / 2 * math.log(math.pi)),
        make_line(256, 0.5, False),
        make_line(20, 0.0159, True),
        make_line(256, 0.0028, True),
        make_line(None, None, True),
    ]
    return {"eigenvalues": eigenvalues(), "grid": rows, "dequantized": rows}


# ------------------------------------------------------------------------------------------------ what a page is given
def make_pictures(name, n=64):
    g = torch.Generator().manual_seed(len(name))
    real, rebuilt, generated = (torch.rand(n, *SHAPE, generator=g) for _ in range(3))
    if name == "c5-asymmetric":
        rebuilt = real * 0.8
    return Pictures(real, rebuilt, generated)


def make_measured(names, plan="normal", epochs=5, n=8):
    pictures = {name: make_pictures(name, n) for name in names}
    originals = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    strip = (originals, {name: pictures[name].reconstructed[:8] for name in names})
    counts = {"c1": 2_806_312, "c2": 3_089_984, "c3": 22_556_160, "c4": 1_565_955}
    numbers = {"linear": linear_numbers(), "epochs": epochs, "plan": plan, "parameters": counts}
    return SimpleNamespace(numbers=numbers, pictures={**pictures, "strip": strip})
