"""Training as shipped is the plain loop that the article shows: written out here once more, and compared."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.distributions import Normal, kl_divergence

from diabolo import training
from diabolo.config import resolve
from diabolo.data import Access, Loader, load
from diabolo.errors import UsageError
from diabolo.models.build import build_model
from diabolo.seeds import fold
from diabolo.training import check_flips, resume, train
from known import tiny_images
from test_contracts import small_config

torch.set_num_threads(1)


def plain_loop(config, dataset):
    """Weights after every epoch, and their moving average, from torch alone; beta = 1, cross-entropy on grey levels."""
    torch.manual_seed(fold(config.seed, "init"))
    model = build_model(config.model.to_dict(), dataset.spec)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.train.lr, fused=True)
    average = {name: t.clone() for name, t in model.state_dict().items()}
    loader, step, epochs = Loader(dataset, "train"), 0, []
    for epoch in range(1, config.train.epochs + 1):
        for batch in loader.shuffled(config.train.batch, config.seed, epoch, flips=config.train.flips):
            torch.manual_seed(fold(config.seed, "step", step))
            mu, log_variance = model.encoder(batch.x).chunk(2, 1)
            sd = torch.exp(0.5 * log_variance)
            z = mu + sd * torch.randn(1, *mu.shape)[0]
            logits = model.decoder(z)
            bce = (
                torch.nn.functional
                .binary_cross_entropy_with_logits(logits, batch.x, reduction="none")
                .flatten(1)
                .sum(1)
            )
            kl = kl_divergence(Normal(mu, sd), Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum(1)
            optimiser.zero_grad()
            (bce + kl).mean().backward()
            optimiser.step()
            step += 1
            decay = min(config.train.ema, step / (step + 9))
            average = {name: t.lerp(model.state_dict()[name], 1 - decay) for name, t in average.items()}
        epochs.append(({name: t.clone() for name, t in model.state_dict().items()}, average))
    return epochs


@pytest.mark.parametrize("extra", [(), ("train.ema=0.9",), ("train.flips=true",)])
def test_training_is_the_plain_loop(extra, tmp_path):
    """A curve each epoch, states, an average: none of them changes the weights that are trained."""
    dataset = tiny_images(80)
    config = small_config(*extra, "train.curve=validation", "train.checkpoint_every=4", "train.lr=0.01")
    run = train(config, out=tmp_path / "run", data=dataset, device="cpu")
    model, average = plain_loop(config, dataset)[-1]
    found = load_file(run.path / "weights.safetensors")
    expected = average if config.train.ema else model
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("stopped", "said"),
    [(2, ["  4.0 s  about 13 s left", "  6.0 s  about 6 s left"]), (5, ["  1.0 s", "  6.0 s  about 6 s left"])],
)
def test_the_time_left_of_a_run_that_goes_on_is_that_of_whole_epochs(stopped, said, tmp_path, monkeypatch):
    """A clock that ticks once a step and once an epoch; of an epoch of 5 steps, `stopped` are done before."""
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=count().__next__))
    config = small_config("train.curve=none", "train.keep=last", "train.batch=10", "train.epochs=3")
    run = train(config, out=tmp_path / "run", data=tiny_images(80), device="cpu", seconds=stopped + 1)
    resume(run.path, data=tiny_images(80), device="cpu")
    news = [line for line in (run.path / "log.txt").read_text(encoding="utf-8").splitlines() if " epoch " in line]
    news = [line for line in news if "train loss" in line]
    for line, end in zip(news, [*said, "  6.0 s"], strict=True):
        assert line.endswith(end), line


def test_flips_change_what_is_trained_and_are_refused_where_there_is_no_mirror_image(tmp_path):
    plain, turned = (
        load_file(train(small_config(*extra), out=tmp_path / name, data=tiny_images(80)).path / "weights.safetensors")
        for name, extra in (("plain", ()), ("turned", ("train.flips=true",)))
    )
    assert any(not plain[name].equal(turned[name]) for name in plain)
    for name, params, why in (
        ("linear_gaussian", {"examples": 100}, "holds vectors"),
        ("clouds", {"examples": 100, "permuted": True}, "permuted"),
    ):
        dataset = load(name, params, Access())
        check_flips(False, dataset)
        with pytest.raises(UsageError, match=why):
            check_flips(True, dataset)
    with pytest.raises(UsageError, match="flips=true is refused"):
        train(resolve("linear-vae", ["train.flips=true"]).config, out=tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
