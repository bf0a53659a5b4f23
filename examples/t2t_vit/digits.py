"""scikit-learn's handwritten digits as images of 112 x 112 px: 784 tokens in the first layer."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch.nn import functional

from examples.t2t_vit.images import spaced
from examples.t2t_vit.model import Config

CONFIG = Config(
    image=112, channels=1, classes=10, token_width=32, width=64, depth=4, heads=4, mlp_ratio=2,
    drop_path=0.1,
)  # fmt: skip
WEIGHTS = Path(__file__).with_name("digits.pt")


def load(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The 1347 training or 450 test digits: images (n, 1, 8, 8) in [0, 1], and labels (n,)."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    labels = torch.from_numpy(digits.target)
    train, test = train_test_split(
        torch.arange(len(labels)), test_size=450, stratify=labels, random_state=0
    )
    rows = {"train": train, "test": test}[split]
    return images[rows], labels[rows]


def enlarge(images: torch.Tensor) -> torch.Tensor:
    """Enlarge images (n, 1, 8, 8) to the input of the model, (n, 1, 112, 112) in [-1, 1]."""
    return _sample(images, torch.eye(2, 3).expand(len(images), -1, -1))


def augment(images: torch.Tensor) -> torch.Tensor:
    """Enlarge with random rotations (15 degrees), shifts (1 pixel of 8), scales and shears."""
    n = len(images)
    angle, shear = (torch.empty(n).uniform_(-1, 1) * x for x in (math.radians(15), 0.15))
    scale = torch.empty(n).uniform_(0.85, 1.15)
    shift = torch.empty(n, 2).uniform_(-0.25, 0.25)  # 2 is the side of the image
    turn = torch.stack([angle.cos(), shear - angle.sin(), angle.sin(), angle.cos()], dim=1)
    maps = torch.cat([turn.view(n, 2, 2) * scale.view(n, 1, 1), shift[..., None]], dim=2)
    return _sample(images, maps)


def _sample(images: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    side = CONFIG.image
    grid = functional.affine_grid(maps, [len(images), 1, side, side], align_corners=False)
    enlarged = functional.grid_sample(images, grid, mode="bicubic", align_corners=False)
    return enlarged.clamp(0, 1) * 2 - 1


class HeldOut:
    """The test digits, with the methods that the accuracy command needs."""

    classes = CONFIG.classes

    def __init__(self, limit: int | None = None):
        images, labels = load("test")
        rows = spaced(len(labels), limit)
        self.images, self.labels = images[rows], labels[rows]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, first: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (n, 1, 112, 112) and labels (n,) of the digits first .. end-1."""
        return enlarge(self.images[first:end]), self.labels[first:end]
