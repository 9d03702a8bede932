"""How near images are to their originals: mean squared error, PSNR, SSIM. Pure functions of tensors.

N images (N, C, H, W) with values in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

#: Side and standard deviation of the Gaussian window, and the two constants (Wang et al., 2004).
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
_CHUNK = 500


def psnr(mse: float) -> float:
    r"""Peak signal-to-noise ratio in decibels of a mean squared error, for a peak of 1; infinite for no error.

    .. math:: PSNR = 10 \log_{10}(1 / MSE)

    The error is the mean over all pixels of all images: the PSNR of a set, not the mean of its images' PSNRs, which is larger.
    """
    return math.inf if mse == 0 else -10 * math.log10(mse)


def bits_per_dim(nats: float, dimensions: int) -> float:
    r"""Bits per dimension of images of 256 levels whose D values were scored, in nats per image, by a density on [0, 1].

    .. math:: \frac{-\log p(x)}{D \log 2} + \log_2 256

    Of x = (k + u)/256 with u uniform the expectation is an upper bound of the code length of the levels k. At x = k/255 it is
    only a density: no code has this length.

    Reference: Theis et al., A note on the evaluation of generative models (2016), arXiv:1511.01844, section 3.1.
    """
    return nats / (dimensions * math.log(2)) + 8


def mean_squared_errors(x: Tensor, y: Tensor) -> Tensor:
    """The mean over the values of each example of (x - y)^2, (N,) float64."""
    return torch.cat([(a.double() - b.double()).square().flatten(1).mean(1) for a, b in _chunks(x, y)])


def ssim(x: Tensor, y: Tensor) -> Tensor:
    r"""Structural similarity of images (N, C, H, W) with values in [0, 1]: (N,) float64, at most 1, and 1 only for x = y.

    .. math:: SSIM = \frac{(2 m_x m_y + c_1)(2 s_{xy} + c_2)}{(m_x^2 + m_y^2 + c_1)(s_x^2 + s_y^2 + c_2)}, \quad c_i = K_i^2

    m, s^2 and s_xy are means, variances and covariance under a Gaussian window of 11 x 11 pixels, sigma 1.5, that sums to 1; the
    index is averaged over all windows that lie inside the image, and over channels.

    Raises:
        ValueError: for images of different shapes, or smaller than the window.

    Reference: Wang et al., Image quality assessment: from error visibility to structural similarity (2004),
    https://doi.org/10.1109/TIP.2003.819861
    """
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(f"images of shapes {tuple(x.shape)} and {tuple(y.shape)} cannot be compared")
    if min(x.shape[2:]) < WINDOW:
        raise ValueError(f"images of {x.shape[2]}x{x.shape[3]} are smaller than the window of {WINDOW}x{WINDOW}")
    return torch.cat([_ssim(a.double(), b.double()) for a, b in _chunks(x, y)])


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    mx, my, xx, yy, xy = (_smooth(t) for t in (x, y, x * x, y * y, x * y))
    vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
    c1, c2 = K1**2, K2**2
    index = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return index.flatten(1).mean(1)


def _smooth(t: Tensor) -> Tensor:
    """The window's mean at each place where it lies inside, (N, C, H - 10, W - 10): the window is a product of two bells."""
    down, across = (_bells(side).to(t.device) for side in t.shape[2:])
    return down @ t @ across.T


def _bells(side: int) -> Tensor:
    """(side - 10, side): row i is the bell that begins at i."""
    offsets = torch.arange(side) - torch.arange(side - WINDOW + 1)[:, None]
    inside = (offsets >= 0) & (offsets < WINDOW)
    bell = torch.exp(-(offsets - WINDOW // 2).double().square() / (2 * SIGMA**2)) * inside
    return bell / bell.sum(1, keepdim=True)


def _chunks(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(x.split(_CHUNK), y.split(_CHUNK))
