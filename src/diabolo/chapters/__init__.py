"""Chapters: a set of runs and the report that `reproduce` makes of them. Listing them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chapter:
    """A line of `diabolo reproduce`: what it makes, of which data, bytes to download, bytes on disk, seconds that a named machine
    took, None where no whole one was timed. `plans`: how much of it can be asked for."""

    name: str
    title: str
    data: str
    download: int
    disk: int
    seconds: float | None
    machine: str
    plans: tuple[str, ...] = ("normal", "full", "smoke")


CHAPTERS = {
    "mnist": Chapter(
        name="mnist",
        title="the MLP VAE on MNIST: three sizes, grey and binarized pixels",
        data="mnist",
        download=11_600_000,
        disk=200_000_000,
        seconds=245.0,
        machine="2 cores, AMD EPYC with AVX-512, no GPU",
    ),
    "autoencoders": Chapter(
        name="autoencoders",
        title="plain, denoising and contractive autoencoders on MNIST, beside PCA, filters, JPEG and a VAE",
        data="mnist",
        download=11_600_000,
        disk=490_000_000,
        seconds=356.0,
        machine="2 cores, AMD EPYC with AVX-512, no GPU",
    ),
    "cifar10": Chapter(
        name="cifar10",
        title="why CIFAR-10 was blurred: the article's networks with honest likelihoods, beside linear models",
        data="cifar10",
        download=138_900_000,
        disk=1_500_000_000,
        seconds=2219.0,
        machine="2 cores, AMD EPYC with AVX-512, no GPU",
        plans=("normal", "full", "locality", "quick", "smoke"),
    ),
    "sharp": Chapter(
        name="sharp",
        title="CIFAR-10, sharp: a network whose reconstructions are, its ablation, and samples from three priors",
        data="cifar10",
        download=138_900_000,
        disk=900_000_000,
        seconds=None,
        machine="",
        plans=("normal", "pretrained", "full", "quick", "smoke"),
    ),
}
