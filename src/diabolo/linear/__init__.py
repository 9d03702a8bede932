"""Models in closed form: the lines that every network has to beat. Everything is float64."""

from __future__ import annotations

from diabolo.linear.gaussians import Gaussian, Spectrum, full_covariance, probabilistic_pca, spectrum, water_filling
from diabolo.linear.pca import LARGEST, PCA, fit, memory
from diabolo.linear.sampling import draw_full_covariance, draw_per_class, draw_ppca
from diabolo.linear.table import DEQUANTIZED, FIXED, GRID, LATENTS, Convention, LeftOut, Line, Lines, lines

__all__ = [
    "DEQUANTIZED",
    "FIXED",
    "GRID",
    "LARGEST",
    "LATENTS",
    "PCA",
    "Convention",
    "Gaussian",
    "LeftOut",
    "Line",
    "Lines",
    "Spectrum",
    "draw_full_covariance",
    "draw_per_class",
    "draw_ppca",
    "fit",
    "full_covariance",
    "lines",
    "memory",
    "probabilistic_pca",
    "spectrum",
    "water_filling",
]
