"""The article's Model 1 as such a script is written: the fixed text that `make bench` measures diabolo against.

It stands alone (torch, NumPy and Pillow), and nothing in it is slow on purpose: `Images` does what torchvision's MNIST with
`ToTensor()` does, image by image; the loss is the article's (sigmoid, binary cross-entropy and KL summed over the batch);
the optimiser is Adam with its defaults. The test pass is outside the timing. One line of JSON for each epoch.

Usage: python benchmarks/scripts/article_mnist.py DATA.npz [--epochs 10] [--loader tensors] [--workers 2] [--target 104.675]
DATA.npz holds train (N, 28, 28) and test (n, 28, 28), uint8.
"""

import argparse
import json
import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


class VAE(nn.Module):
    def __init__(self, inputs=784, hidden=400, latent=20):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, inputs),
            nn.Sigmoid(),
        )

    def forward(self, x):
        h = self.encoder(x)
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return self.decoder(z), mean, log_variance


class Images(Dataset):
    """An image a time: array, PIL image, array, tensor (1, 28, 28) in [0, 1]."""

    def __init__(self, images):
        self.images = torch.from_numpy(images)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = Image.fromarray(self.images[index].numpy())
        pixels = torch.from_numpy(np.array(image, np.uint8, copy=True))
        pixels = pixels.view(image.size[1], image.size[0], len(image.getbands()))
        return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)


def loss_function(decoded, x, mean, log_variance):
    bce = F.binary_cross_entropy(decoded, x, reduction="sum")
    kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
    return bce + kl


def dataset(images, loader):
    if loader == "images":
        return Images(images)
    return TensorDataset(torch.from_numpy(images).unsqueeze(1).float() / 255)


def train_epoch(model, loader, optimiser):
    model.train()
    total = 0.0
    for batch in loader:
        x = (batch[0] if isinstance(batch, list) else batch).view(-1, 784)
        optimiser.zero_grad()
        decoded, mean, log_variance = model(x)
        loss = loss_function(decoded, x, mean, log_variance)
        loss.backward()
        total += loss.item()
        optimiser.step()
    return total


@torch.no_grad()
def test_loss(model, images):
    """BCE + KL in nats an image, one draw of z for each."""
    model.eval()
    total = 0.0
    for part in torch.from_numpy(images).view(-1, 784).split(500):
        x = part.float() / 255
        decoded, mean, log_variance = model(x)
        total += loss_function(decoded, x, mean, log_variance).item()
    return total / len(images)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int)
    parser.add_argument("--loader", choices=("images", "tensors"), default="images")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=400)
    parser.add_argument("--latent", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--target", type=float, help="stop once BCE + KL on the test images is no more than this")
    parser.add_argument(
        "--at-least", type=int, default=1, help="epochs to be trained even if the target is reached before"
    )
    given = parser.parse_args()

    torch.manual_seed(given.seed)
    data = np.load(given.data)
    images, test = data["train"][: given.images], data["test"]
    loader = DataLoader(dataset(images, given.loader), batch_size=128, shuffle=True, num_workers=given.workers)
    model = VAE(784, given.hidden, given.latent)
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
