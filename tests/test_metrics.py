"""Every metric against its definition, written out with NumPy on evidence made by hand; errors on a model that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diabolo import registry
from diabolo.data import from_tensor
from diabolo.evaluation import Settings, gather
from diabolo.metrics import Evidence
from diabolo.models.distributions import diagonal_normal, temper
from diabolo.progress import Progress
from known import SIGMAS, draw_x, linear_model, loading_matrix, posterior_variance

torch.set_num_threads(1)
N, SAMPLED, WIDTHS = 40, 12, (1.0, 0.2, 0.05, 0.001)


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=g, dtype=torch.float64)

    index = torch.randperm(N, generator=g)[:SAMPLED].sort().values
    elbo = -100 - 10 * draw(N)
    kl = 5 + draw(N)
    return Evidence(
        split="test", unit="nats/image", distortion=-elbo - kl, elbo=elbo, elbo_variance=draw(N), kl=kl, mse_mean=draw(N),
        mse_sample=draw(N), mean=(draw(N, 4) - 0.5) * math.sqrt(12) * torch.tensor(WIDTHS), samples=3,
        labels=torch.arange(N) % 2, index=index, log_p=elbo[index] + draw(SAMPLED), log_p_variance=draw(SAMPLED),
        ess=1 + 9 * draw(SAMPLED), k=10, curve={1: draw(6), 5: draw(6)}, curve_variance={1: draw(6), 5: draw(6)},
    )  # fmt: skip


def se(values: np.ndarray) -> float:
    """The standard error of the mean."""
    return math.sqrt(((values - values.mean()) ** 2).sum() / (len(values) - 1) / len(values))


def test_means_and_their_standard_errors(evidence):
    elbo, kl = evidence.elbo.numpy(), evidence.kl.numpy()
    columns = {
        "elbo": elbo, "kl": kl, "distortion": -elbo - kl, "mse_mean": evidence.mse_mean.numpy(),
        "mse_sample": evidence.mse_sample.numpy(),
    }  # fmt: skip
    for name, values in columns.items():
        found = registry.get("metric", name)(evidence)
        assert (found["value"], found["se"], found["n"]) == pytest.approx((values.mean(), se(values), N), rel=1e-12)
    for name in ("elbo", "distortion"):
        noise = math.sqrt(np.mean(evidence.elbo_variance.numpy()) / N)  # of a mean of N independent numbers
        assert registry.get("metric", name)(evidence)["mc_se"] == pytest.approx(noise, rel=1e-12)


def test_log_p_is_the_bound_on_all_images_and_the_gap_on_some(evidence):
    found = registry.get("metric", "log_p")(evidence)
    log_p, elbo = evidence.log_p.numpy(), evidence.elbo.numpy()
    gap = np.array([log_p[row] - elbo[image] for row, image in enumerate(evidence.index.tolist())])
    assert found["gap"] == pytest.approx(gap.mean(), rel=1e-12) and found["gap_se"] == pytest.approx(se(gap), rel=1e-12)
    assert found["value"] == pytest.approx(elbo.mean() + gap.mean(), rel=1e-12)
    assert (found["plain_mean"], found["plain_se"]) == pytest.approx((log_p.mean(), se(log_p)), rel=1e-12)
    two_phase = log_p.var(ddof=1) / N + (1 / SAMPLED - 1 / N) * gap.var(ddof=1)
    assert found["se_sampling"] == pytest.approx(math.sqrt(two_phase), rel=1e-12)
    assert found["mc_se"] == pytest.approx(math.sqrt(evidence.log_p_variance.numpy().mean() / SAMPLED), rel=1e-12)
    assert found["ess_median"] == sorted(evidence.ess.tolist())[SAMPLED // 2 - 1] and found["n"] == SAMPLED


def test_active_dimensions_are_those_whose_variance_is_above_a_hundredth(evidence):
    """Variances near 1, 0.04, 0.0025 and 0.000001 against 0.01."""
    found = registry.get("metric", "active_units")(evidence)
    assert (found["value"], found["of"]) == (2, 4)


def test_the_curve_s_points_are_means_with_both_errors(evidence):
    for point in registry.get("metric", "log_p_curve")(evidence)["points"]:
        values, variances = evidence.curve[point["k"]].numpy(), evidence.curve_variance[point["k"]].numpy()
        expected = (values.mean(), se(values), math.sqrt(variances.mean() / 6))
        assert (point["value"], point["se"], point["mc_se"]) == pytest.approx(expected, rel=1e-12)


def test_squared_errors_of_the_linear_model_are_its_closed_form():
    """At z = mu the error is that of the affine map; with z drawn, sum_j (W_j sd_j)^2 / D more. Means over 4 values of x."""
    model, x = linear_model(4).float(), draw_x(4, 2000).float()
    dataset = from_tensor(x, validation=0.0, test=0.5)
    settings = Settings(k=1, images=2, elbo_samples=50, curve_images=0, probes=False)
    with torch.no_grad():
        found, _ = gather(model, dataset, settings, torch.device("cpu"), Progress())
    weight, bias = loading_matrix(4)
    test = dataset.test.values.double()
    mu = model.encode(dataset.test.values).mean.double()
    torch.testing.assert_close(found.mean, mu, rtol=0, atol=1e-5)
    exact = ((mu @ weight.T + bias - test) ** 2).sum(1) / 4
    torch.testing.assert_close(found.mse_mean, exact, rtol=1e-4, atol=1e-5)
    more = float((weight**2 * posterior_variance()).sum()) / 4
    difference = found.mse_sample - found.mse_mean
    error = difference.std().item() / math.sqrt(len(difference))
    assert abs(difference.mean().item() - more) < SIGMAS * error


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_is_a_factor_of_the_standard_deviation(temperature):
    p = diagonal_normal(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]), 1)
    warm = temper(p, temperature)
    torch.testing.assert_close(warm.mean, p.mean)
    torch.testing.assert_close(warm.stddev, temperature * p.stddev)
