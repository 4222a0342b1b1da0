"""Run the MNIST example of pytorch/examples: its network, data loader, optimizer and schedule (BSD-3-Clause).

This is `mnist/main.py` of that repository with its default arguments and without its command line. As there, training
and testing alternate epoch by epoch.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from benchmarks.vision import datasets, transforms

FILES = Path("../shared/mnist")


class Net(nn.Module):
    """Convolutional network of pytorch/examples with 1,199,882 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities, float32 `(N, 10)`, of standardised images, float32 `(N, 1, 28, 28)`."""
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = self.dropout1(F.max_pool2d(x, 2))
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        return F.log_softmax(self.fc2(self.dropout2(x)), dim=1)


def unpack(folder: Path) -> None:
    """Decompress the published files into the place under `folder` where torchvision's data set expects them."""
    raw = folder / "MNIST/raw"
    raw.mkdir(parents=True)
    for file in FILES.glob("*.gz"):
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))


def epochs(folder: Path, *, seed: int = 1, num_epochs: int = 14) -> Iterator[tuple[float, float]]:
    """Train on the files of torchvision's data set in `folder`, and yield the result of each epoch.

    Yields:
        The seconds of the epoch's training, without the test, and the accuracy on the test split.
    """
    torch.manual_seed(seed)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train_loader = DataLoader(datasets.MNIST(str(folder), train=True, transform=transform), batch_size=64)
    test_loader = DataLoader(datasets.MNIST(str(folder), train=False, transform=transform), batch_size=1000)
    model = Net()
    optimizer = optim.Adadelta(model.parameters(), lr=1.0)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.7)
    for _ in range(num_epochs):
        started = time.perf_counter()
        model.train()
        for data, target in train_loader:
            optimizer.zero_grad()
            F.nll_loss(model(data), target).backward()
            optimizer.step()
        seconds = time.perf_counter() - started
        model.eval()
        with torch.no_grad():
            correct = sum(int((model(data).argmax(1) == target).sum()) for data, target in test_loader)
        yield seconds, correct / len(test_loader.dataset)  # type: ignore[arg-type]
        scheduler.step()
