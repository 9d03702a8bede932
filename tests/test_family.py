"""The mathematics of the autoencoder family: point codes, corruption, Jacobian penalties, tied weights, the running sigma."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diabolo.data import Loader
from diabolo.data.spec import DataSpec
from diabolo.metrics import mean_terms
from diabolo.models.build import build_model, build_objective
from diabolo.models.corruptions import corrupt
from diabolo.models.distributions import Dirac, keyed_sample
from diabolo.models.likelihoods import GaussianLikelihood, OptimalGaussianLikelihood
from diabolo.models.networks import BatchNorm, Conv, Layer, Tied, halvings
from diabolo.models.objectives import Reconstruction, squared_jacobian
from diabolo.step import after_step
from known import SIGMAS, sigmas, tiny_images

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def autoencoder(encoder="mlp", decoder="mlp", likelihood="gaussian", latent=3, values=6, **encoding):
    parts = {
        "latent": latent,
        "encoder": {"name": encoder, **encoding},
        "posterior": {"name": "dirac"},
        "prior": {"name": "none"},
        "decoder": {"name": decoder},
        "likelihood": {"name": likelihood},
    }
    return build_model(parts, DataSpec(name="d", shape=(values,), values="real")).double()


# ------------------------------------------------------------------------------------------------ point codes
def test_every_draw_of_a_point_is_the_point_and_it_has_no_density():
    q = Dirac(torch.randn(4, 2, 3))
    assert (q.batch_shape, q.event_shape) == ((4,), (2, 3))
    assert torch.equal(q.rsample((5,)), q.value.expand(5, 4, 2, 3))
    assert torch.equal(keyed_sample(q, 5, [1, 2, 3, 4]), q.rsample((5,)))
    assert torch.equal(q.mean, q.value) and not q.variance.any()
    with pytest.raises(NotImplementedError, match="no density"):
        q.log_prob(q.value)


def test_a_plain_autoencoder_has_neither_rate_nor_weight_and_draws_nothing():
    model = autoencoder()
    x = torch.randn(4, 6, dtype=torch.float64)
    (latent,) = (inference := model(x, samples=2)).latents
    assert latent.prior is None and not model.bounded
    for ask in (latent.kl, latent.log_ratio, lambda: inference.log_weight(x)):
        with pytest.raises(NotImplementedError, match=r"no prior|no density"):
            ask()
    with pytest.raises(ValueError, match="nothing can be drawn"):
        model.sample(2)


def test_the_loss_of_a_gaussian_autoencoder_is_half_the_squared_error_over_the_variance():
    model = autoencoder()
    model.likelihood.log_scale.data.fill_(math.log(0.3))
    x = torch.randn(5, 6, dtype=torch.float64)
    sse = (model.reconstruct(x).mean[0] - x).square().sum(1)
    expected = sse / (2 * 0.3**2) + 3 * math.log(2 * math.pi * 0.3**2)
    torch.testing.assert_close(Reconstruction()(model, x)["loss"], expected)


def test_a_linear_autoencoder_reaches_the_subspace_of_pca():
    """Baldi and Hornik (1989): the optimum of the squared error is the projection on the first principal components."""
    x = torch.randn(200, 6, dtype=torch.float64) @ torch.diag(torch.tensor([3.0, 2.0, 1.5, 0.5, 0.4, 0.3]).double())
    x = x - x.mean(0)
    encoder, decoder = nn.Linear(6, 3).double(), nn.Linear(3, 6).double()
    optimiser = torch.optim.LBFGS(
        [*encoder.parameters(), *decoder.parameters()], max_iter=2000, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        loss = (decoder(encoder(x)) - x).square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    optimum = torch.linalg.svdvals(x)[3:].square().sum().item()
    assert closure().item() == pytest.approx(optimum, rel=1e-6)
    axes = torch.linalg.svd(x).Vh[:3]
    found = torch.linalg.qr(decoder.weight.detach())[0]
    assert torch.linalg.svdvals(axes @ found).min().item() == pytest.approx(1, abs=1e-6)


# ------------------------------------------------------------------------------------------------ corruption
def test_corruptions_change_what_they_say():
    """Shares and spreads within 5 standard errors: each of the 5 checks fails once in 1.7 million seeds."""
    x = torch.rand(200, 1, 30, 30, dtype=torch.float64) * 0.8 + 0.1  # neither 0 nor 1
    n = x.numel()
    assert corrupt(x, "none", 0.3) is x
    noise = corrupt(x, "gaussian", 0.3) - x
    assert abs(noise.mean().item()) < SIGMAS * 0.3 / math.sqrt(n)
    assert abs(noise.var().item() - 0.09) < SIGMAS * 0.09 * math.sqrt(2 / n)
    share = SIGMAS * math.sqrt(0.2 * 0.8 / n)
    masked = corrupt(x, "masking", 0.2)
    assert abs((masked == 0).double().mean().item() - 0.2) < share
    assert torch.equal(masked[masked != 0], x[masked != 0])
    salted = corrupt(x, "salt_pepper", 0.2)
    half = SIGMAS * math.sqrt(0.1 * 0.9 / n)
    assert abs((salted == 0).double().mean().item() - 0.1) < half
    assert abs((salted == 1).double().mean().item() - 0.1) < half
    kept = (salted != 0) & (salted != 1)
    assert torch.equal(salted[kept], x[kept])


@pytest.mark.parametrize("kind", ["gaussian", "masking", "salt_pepper"])
def test_keyed_noise_belongs_to_the_example(kind):
    x = torch.rand(4, 3, 5)
    whole = corrupt(x, kind, 0.4, [7, 8, 9, 10])
    assert torch.equal(whole[2:], corrupt(x[2:], kind, 0.4, [9, 10]))
    assert not torch.equal(whole, corrupt(x, kind, 0.4, [8, 7, 9, 10]))


def test_denoising_scores_the_clean_example_and_encodes_the_noisy_one():
    model = autoencoder()
    x = torch.randn(4, 6, dtype=torch.float64)
    seen = []
    encode = model.encode
    model.encode = lambda inputs, y=None: seen.append(inputs) or encode(inputs, y)
    terms = Reconstruction(noise="gaussian", level=0.5)(model, x)
    assert not torch.equal(seen[0], x)
    expected = -model.decode(encode(seen[0]).mean[None]).log_prob(x)[0]
    torch.testing.assert_close(terms["loss"], expected)


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "reconstruction", "noise": "gaussian"},
        {"name": "reconstruction", "noise": "masking", "contractive": 0.3, "jacobian": "hutchinson", "probes": 2},
    ],
)
def test_a_curve_with_noise_does_not_depend_on_the_batches(objective):
    dataset = tiny_images(60)
    parts = {
        "latent": 3,
        "encoder": {"name": "mlp", "width": 8},
        "posterior": {"name": "dirac"},
        "prior": {"name": "none"},
        "decoder": {"name": "mlp", "width": 8},
        "likelihood": {"name": "bernoulli_relaxed"},
    }
    model = build_model(parts, dataset.spec).double()
    loader = Loader(dataset, "train", dtype=torch.float64)
    built = build_objective(objective, dataset.spec)
    whole = mean_terms(model, built, loader.ordered(len(loader)), seed=3)
    for size in (1, 7):
        assert mean_terms(model, built, loader.ordered(size), seed=3) == pytest.approx(whole, rel=1e-12)
    assert mean_terms(model, built, loader.ordered(7), seed=4) != pytest.approx(whole, rel=1e-6)
    if "contraction" in whole:
        assert whole["loss"] == pytest.approx(whole["distortion"] + 0.3 * whole["contraction"], rel=1e-12)


# ------------------------------------------------------------------------------------------------ the contractive penalty
def exact(f, x):
    """||J||_F^2 of each example, by one Jacobian each."""
    each = [torch.autograd.functional.jacobian(lambda one: f(one[None])[0], row, create_graph=True) for row in x]
    return torch.stack([j.square().sum() for j in each])


@pytest.mark.parametrize("activation", ["linear", "sigmoid", "tanh"])
def test_the_closed_form_is_the_jacobian_s_norm_and_so_is_its_gradient(activation):
    layer = Layer((6,), (4,), activation).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    closed, reference = layer.squared_jacobian(x), exact(layer, x)
    torch.testing.assert_close(closed, reference, rtol=1e-12, atol=0)
    parameters = [p for p in layer.parameters() if activation != "linear" or p.ndim == 2]
    a = torch.autograd.grad(closed.sum(), parameters)
    b = torch.autograd.grad(reference.sum(), parameters)
    for one, other in zip(a, b):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_hutchinson_s_estimate_has_the_closed_form_as_its_mean():
    """5 standard errors for each of 3 examples: fails once in 600,000 seeds. And its gradient likewise, for 24 weights."""
    layer = Layer((6,), (4,), "sigmoid").double()
    x = torch.randn(3, 6, dtype=torch.float64)
    draws = torch.stack([squared_jacobian(layer, x, 1).detach() for _ in range(4000)])
    assert sigmas(draws, layer.squared_jacobian(x).detach()) < SIGMAS
    (expected,) = torch.autograd.grad(layer.squared_jacobian(x).sum(), [layer.weight])
    gradients = torch.stack([
        torch.autograd.grad(squared_jacobian(layer, x, 1).sum(), [layer.weight])[0] for _ in range(4000)
    ])
    assert sigmas(gradients, expected) < SIGMAS


def test_with_one_code_dimension_hutchinson_is_exact():
    layer = Layer((6,), (1,), "sigmoid").double()
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(squared_jacobian(layer, x, 1), layer.squared_jacobian(x), rtol=1e-12, atol=0)


def test_both_forms_of_the_contractive_loss_agree_and_weigh_the_penalty():
    model = autoencoder("layer", "tied")
    x = torch.randn(4, 6, dtype=torch.float64)
    plain, closed = Reconstruction()(model, x)["loss"], Reconstruction(contractive=0.7)(model, x)
    torch.testing.assert_close(closed["loss"], plain + 0.7 * model.encoder.squared_jacobian(x))
    torch.testing.assert_close(closed["contraction"], exact(lambda one: model.encode(one).mean, x))
    many = Reconstruction(contractive=0.7, jacobian="hutchinson", probes=20_000)(model, x)
    torch.testing.assert_close(many["contraction"], closed["contraction"], rtol=0.05, atol=0)


def test_the_penalty_is_measured_without_gradients_too():
    model = autoencoder("mlp", "mlp")
    x = torch.randn(4, 6, dtype=torch.float64)
    objective = Reconstruction(contractive=0.7, jacobian="hutchinson")
    torch.manual_seed(3)
    expected = objective(model, x)["loss"].detach()
    torch.manual_seed(3)
    with torch.no_grad():
        torch.testing.assert_close(objective(model, x)["loss"], expected)


@pytest.mark.parametrize(
    "wrong", [{"level": -0.1}, {"noise": "masking", "level": 1.1}, {"contractive": -1.0}, {"probes": 0}]
)
def test_settings_without_a_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match="level|contractive"):
        Reconstruction(**wrong)


# ------------------------------------------------------------------------------------------------ tied weights
def test_a_tied_decoder_uses_the_encoder_s_weights_and_owns_its_bias_alone():
    model = autoencoder("layer", "tied")
    assert set(model.state_dict()) == {
        "encoder.affine.weight",
        "encoder.affine.bias",
        "decoder.bias",
        "likelihood.log_scale",
    }
    z = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(model.decoder(z), z @ model.encoder.weight + model.decoder.bias)
    with torch.no_grad():
        model.encoder.weight.mul_(2)
    torch.testing.assert_close(model.decoder(z), z @ model.encoder.weight + model.decoder.bias)
    x = torch.randn(4, 6, dtype=torch.float64)
    Reconstruction()(model, x)["loss"].sum().backward()
    weight = model.encoder.weight.detach().clone().requires_grad_()  # the same function written out, W used twice
    code = torch.sigmoid(x @ weight.T + model.encoder.affine.bias.detach())
    decoded = code @ weight + model.decoder.bias.detach()
    variance = model.likelihood.log_scale.exp().detach() ** 2
    (gradient,) = torch.autograd.grad((decoded - x).square().sum() / (2 * variance), weight)
    torch.testing.assert_close(model.encoder.weight.grad, gradient)


def test_a_tied_decoder_needs_a_layer():
    with pytest.raises(ValueError, match="model.encoder=layer"):
        Tied((3,), (6,), nn.Linear(6, 3))


# ------------------------------------------------------------------------------------------------ the running sigma
def scored(likelihood, error):
    """Score x = error around a mean of 0, batch (1, n)."""
    x = torch.tensor(error, dtype=torch.float64)[:, None]
    return likelihood(torch.zeros(1, *x.shape, dtype=torch.float64)).log_prob(x)


def test_sigma_is_the_root_mean_squared_error_then_its_moving_average():
    likelihood = OptimalGaussianLikelihood(decay=0.5).double().train()
    for error, expected in (([2.0, 4.0], 10.0), ([1.0, 1.0], 5.5), ([0.0, 0.0], 2.75)):
        scored(likelihood, error)
        scored(likelihood, error)  # a second look at the same batch does no harm
        after_step(likelihood)
        assert likelihood.variance.item() == pytest.approx(expected)
    scored(likelihood.eval(), [100.0, 100.0])
    after_step(likelihood)
    assert likelihood.variance.item() == pytest.approx(2.75)  # an evaluation teaches nothing
    scored(likelihood.train(), [100.0, 100.0])
    assert likelihood.variance.item() == pytest.approx(2.75)  # nor does a step that was not taken


def test_the_density_is_the_gaussian_of_the_sigma_in_use():
    likelihood, fixed = OptimalGaussianLikelihood().double(), GaussianLikelihood(scale=0.7).double()
    likelihood.variance.fill_(0.49)
    params, x = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(likelihood(params).log_prob(x), fixed(params).log_prob(x))
    torch.testing.assert_close(likelihood(params).mean, params)
    assert likelihood(params).sample().shape == params.shape


def test_at_the_optimal_sigma_the_gradient_is_that_of_the_profile_likelihood():
    """The envelope theorem: d/dmean of D/2 log(SSE / D) is the gradient of -log p with sigma held at its optimum."""
    likelihood = OptimalGaussianLikelihood().double()
    x = torch.randn(1, 12, dtype=torch.float64)
    mean = torch.randn(1, 1, 12, dtype=torch.float64, requires_grad=True)
    sse = (x - mean[0]).square().sum()
    (profile,) = torch.autograd.grad(6 * torch.log(sse / 12), mean)
    likelihood.variance.copy_((sse / 12).detach())
    (gradient,) = torch.autograd.grad(-likelihood(mean).log_prob(x).sum(), mean)
    torch.testing.assert_close(gradient, profile)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_never_learns_is_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        OptimalGaussianLikelihood(decay=decay)


# ------------------------------------------------------------------------------------------------ convolutions
def test_batch_normalisation_is_torch_s_and_learns_only_from_steps_that_were_taken():
    ours, theirs = BatchNorm(3), nn.BatchNorm2d(3)
    for _ in range(4):
        x = torch.randn(5, 3, 4, 4) * 2 + 1
        ours(x)  # looked at twice
        torch.testing.assert_close(ours(x), theirs(x))
        after_step(ours)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)
    before = ours.running_mean.clone(), ours.running_var.clone()
    ours(torch.full((5, 3, 4, 4), math.nan))  # no step follows
    assert torch.equal(ours.running_mean, before[0]) and torch.equal(ours.running_var, before[1])
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert ours.running_mean.equal(before[0])


def test_the_network_that_the_article_describes_has_its_number_of_parameters():
    """Four strides, 3-32-64-128-256: 389,376 in the encoder's trunk, 524,800 in the heads, 651,779 in the decoder (d = 256)."""
    encoder, decoder = Conv((3, 32, 32), (512,), depth=4), Conv((256,), (3, 32, 32), depth=4)
    counts = [sum(p.numel() for p in network.parameters()) for network in (encoder, decoder)]
    assert counts == [389_376 + 524_800, 651_779]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(2, 40), st.integers(2, 40), st.integers(0, 4))
def test_any_size_is_mapped_there_and_back(channels, height, width, depth):
    shape = (channels, height, width)
    encoder, decoder = Conv(shape, (4,), width=2, depth=depth), Conv((2,), shape, width=2, depth=depth)
    assert encoder(torch.randn(2, *shape)).shape == (2, 4)
    assert decoder(torch.randn(2, 2)).shape == (2, *shape)


@pytest.mark.parametrize(
    ("size", "expected"), [((28, 28), 3), ((32, 32), 3), ((64, 64), 4), ((8, 8), 1), ((3, 3), 1), ((64, 8), 1)]
)
def test_strides_fit_the_size(size, expected):
    assert halvings(*size) == expected


@pytest.mark.parametrize("shapes", [((4,), (3,)), ((1, 8, 8), (1, 8, 8))])
def test_convolutions_need_one_image(shapes):
    with pytest.raises(ValueError, match="image"):
        Conv(*shapes)


def test_a_batch_with_nan_changes_nothing_of_a_convolutional_model():
    """The rule of after_step: what a step that is not taken has seen is forgotten at the next one that is taken."""
    network = Conv((1, 8, 8), (2,), width=2)
    state = {name: t.clone() for name, t in network.state_dict().items()}
    network(torch.full((3, 1, 8, 8), math.nan))
    for name, t in network.state_dict().items():
        assert torch.equal(t, state[name]), name
