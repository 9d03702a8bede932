"""What the article states in numbers and names: its table, its figures, its machine, its references."""

from __future__ import annotations

from diabolo.language import say

#: Table 4-1 of the article: grey-level images, nats per image; K, split and the z of the MSE are not stated there.
PUBLISHED: dict[str, dict[str, float]] = {
    "Model 1": {"elbo": -104.675, "log_p": -98.331, "gap": 6.344, "mse_mean": 0.0163, "mse_sample": 0.0163},
    "Model 2": {"elbo": -118.023, "log_p": -106.975, "gap": 11.048, "mse_mean": 0.0224, "mse_sample": 0.0224},
    "Model 3": {"elbo": -113.538, "log_p": -104.684, "gap": 8.854, "mse_mean": 0.0207, "mse_sample": 0.0207},
}

#: The environment the article reports.
MACHINE = {
    "Processor": "Intel Xeon (Cascade Lake)",
    "Cores": say("8 virtual CPUs"),
    "Memory": "56 GB",
    "Device": say("one NVIDIA Tesla T4"),
    "PyTorch": "2.8.0",
    "Python": "3.12.1",
}

FIGURES = {
    "architecture": say("Figure 2-1"),
    "curves": say("Figure 4-1"),
    "scatter": say("Figure 4-2"),
    "pictures": say("Figure 4-3"),
    "ablations": say("Figure 4-4"),
    "table": say("Table 4-1"),
}

REFERENCES = (
    "Kingma and Welling: Auto-Encoding Variational Bayes. ICLR 2014. arXiv:1312.6114",
    "Doersch: Tutorial on Variational Autoencoders. 2016. arXiv:1606.05908",
    "Semeniuta, Severyn and Barth: A Hybrid Convolutional Variational Autoencoder for Text Generation. "
    "EMNLP 2017, pp. 627-637. arXiv:1702.02390",
    "Burda, Grosse and Salakhutdinov: Importance Weighted Autoencoders. ICLR 2016. arXiv:1509.00519",
    "Loaiza-Ganem and Cunningham: The continuous Bernoulli: fixing a pervasive error in variational autoencoders. "
    "NeurIPS 2019. arXiv:1907.06845",
)
