"""The article's convolutional VAE as such a script is written: the fixed text that `make bench` measures diabolo against.

It stands alone (torch, NumPy and Pillow), and nothing in it is slow on purpose: `Images` does what torchvision's CIFAR10 with
`ToTensor()` does, image by image; the loss is the article's (squared error and KL summed over the batch); the optimiser is Adam
with its defaults. The test pass is outside the timing. One line of JSON for each epoch.

Usage: python benchmarks/scripts/article_cifar.py DATA.npz [--epochs 10] [--workers 0] [--target 81.594]
DATA.npz holds train (N, 32, 32, 3) and test (n, 32, 32, 3), uint8.
"""

import argparse
import json
import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset


class ConvVAE(nn.Module):
    def __init__(self, latent=256):
        super().__init__()
        planes = [3, 32, 64, 128, 256]
        down, up = [], []
        for a, b in zip(planes, planes[1:]):
            down += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
        for a, b in zip(planes[:1:-1], planes[-2:0:-1]):
            up += [nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=1), nn.BatchNorm2d(b), nn.ReLU()]
        self.encoder = nn.Sequential(*down, nn.Flatten())
        self.mean, self.log_variance = nn.Linear(1024, latent), nn.Linear(1024, latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, 1024),
            nn.Unflatten(1, (256, 2, 2)),
            *up,
            nn.ConvTranspose2d(32, 3, 3, stride=2, padding=1, output_padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x):
        h = self.encoder(x)
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return self.decoder(z), mean, log_variance


class Images(Dataset):
    """An image a time: array, PIL image, array, tensor (3, 32, 32) in [0, 1]."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = Image.fromarray(self.images[index])
        pixels = torch.from_numpy(np.array(image, np.uint8, copy=True))
        pixels = pixels.view(image.size[1], image.size[0], len(image.getbands()))
        return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)


def loss_function(decoded, x, mean, log_variance):
    sse = F.mse_loss(decoded, x, reduction="sum")
    kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
    return sse + kl


def train_epoch(model, loader, optimiser):
    model.train()
    total = 0.0
    for x in loader:
        optimiser.zero_grad()
        decoded, mean, log_variance = model(x)
        loss = loss_function(decoded, x, mean, log_variance)
        loss.backward()
        total += loss.item()
        optimiser.step()
    return total


@torch.no_grad()
def test_loss(model, images):
    """SSE + KL an image, one draw of z for each."""
    model.eval()
    total = 0.0
    for part in torch.from_numpy(images).split(500):
        x = part.permute(0, 3, 1, 2).float() / 255
        decoded, mean, log_variance = model(x)
        total += loss_function(decoded, x, mean, log_variance).item()
    return total / len(images)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--target", type=float, help="stop once SSE + KL on the test images is no more than this")
    parser.add_argument(
        "--at-least", type=int, default=1, help="epochs to be trained even if the target is reached before"
    )
    given = parser.parse_args()

    torch.manual_seed(given.seed)
    data = np.load(given.data)
    images, test = data["train"][: given.images], data["test"]
    loader = DataLoader(Images(images), batch_size=128, shuffle=True, num_workers=given.workers)
    model = ConvVAE()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(1, given.epochs + 1):
        began = time.perf_counter()
        total = train_epoch(model, loader, optimiser)
        row = {"epoch": epoch, "seconds": time.perf_counter() - began, "train_loss": total / len(images)}
        if given.test or given.target is not None:
            row["loss"] = test_loss(model, test)
        print(json.dumps(row), flush=True)
        if given.target is not None and row["loss"] <= given.target and epoch >= given.at_least:
            break


if __name__ == "__main__":
    main()
