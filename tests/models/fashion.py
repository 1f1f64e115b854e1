"""A residual network trained on Fashion-MNIST as Debian packages it (``dataset-fashion-mnist``)."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path("/usr/share/datasets/fashion-mnist")
MISSING = None if FOLDER.exists() else "dataset-fashion-mnist, a Debian package"
EPOCHS, BATCH, RATE = 4, 128, 0.1


def pictures(part: str) -> tuple[Any, Any]:
    """Return the pictures of ``train`` or ``t10k``, (N, 1, 28, 28) with mean 0 and variance 1, and their classes."""
    raw, classes = (
        gzip.decompress((FOLDER / f"{part}-{kind}-ubyte.gz").read_bytes())
        for kind in ("images-idx3", "labels-idx1")
    )
    x = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28).astype(np.float32)
    return (x / 255 - 0.286) / 0.353, np.frombuffer(classes, np.uint8, offset=8).astype(np.int64)


def network() -> Any:
    """Return the network, untrained: three residual blocks of 16, 32 and 64 channels."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.first_norm = nn.BatchNorm2d(outputs)
            self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.second_norm = nn.BatchNorm2d(outputs)
            same = stride == 1 and inputs == outputs
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Identity() if same else nn.Sequential(projection, nn.BatchNorm2d(outputs))

        def forward(self, x: Any) -> Any:
            y = torch.relu(self.first_norm(self.first(x)))
            return torch.relu(self.shortcut(x) + self.second_norm(self.second(y)))

    stem = (nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    blocks = (Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def trained() -> Any:
    """Return the network, trained for four epochs (some minutes)."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    x, y = map(torch.from_numpy, pictures("train"))
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = len(x) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(x))
        for step in range(steps):
            at = order[step * BATCH : (step + 1) * BATCH]
            batch = x[at].flip(3) if torch.rand(1) < 0.5 else x[at]
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(batch), y[at]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()
