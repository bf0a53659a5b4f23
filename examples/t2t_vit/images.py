"""Images in one folder per class, such as the validation set of ImageNet."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
DEVIATION = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
ENDINGS = {".jpeg", ".jpg", ".png"}


class Folder:
    """The images of a folder that has one folder per class; labels follow the order of the names.

    Parameters
    ----------
    root : Path
        The folder.
    side : int
        The side of the model's input. An image is resized to 256 / 224 of it and cropped.
    limit : int, optional
        The number of images, evenly spaced; all by default.

    Raises
    ------
    ValueError
        The folder does not exist, or none of its folders has images.
    """

    def __init__(self, root: Path | str, side: int, limit: int | None = None):
        root = Path(root)
        if not root.is_dir():
            raise ValueError(f"{root} does not exist or is not a folder; it must have one a class")
        classes = sorted(path for path in root.iterdir() if path.is_dir())
        files = [
            (path, label)
            for label, folder in enumerate(classes)
            for path in sorted(folder.iterdir())
            if path.suffix.lower() in ENDINGS
        ]
        if not files:
            raise ValueError(f"{root} has no folders with .JPEG, .jpg or .png files in them")
        self.files = [files[row] for row in spaced(len(files), limit)]
        self.classes = len(classes)
        self.side = side

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, first: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (n, 3, side, side) and labels (n,) of first .. end-1, decoded on threads."""
        paths, labels = zip(*self.files[first:end], strict=True)
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(lambda path: prepare(path, self.side), paths))
        return torch.stack(images), torch.tensor(labels)


def spaced(n: int, limit: int | None) -> list[int]:
    """`limit` evenly spaced numbers below n; all n if `limit` is None or not below n."""
    return list(range(n)) if limit is None or limit >= n else [i * n // limit for i in range(limit)]


def prepare(path: Path, side: int) -> torch.Tensor:
    """Read an image as (3, side, side): bicubic resize, centre crop, ImageNet's mean and deviation.

    Raises
    ------
    ValueError
        The file cannot be decoded; the message names it.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    wide, high = image.size
    short = side * 256 // 224
    # as torchvision does: the longer side is rounded down, the corner of the crop half to even
    size = (short * wide // min(wide, high), short * high // min(wide, high))
    left, top = (round((length - side) / 2) for length in size)
    image = image.resize(size, Image.Resampling.BICUBIC)
    image = image.crop((left, top, left + side, top + side))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (pixels - MEAN) / DEVIATION
