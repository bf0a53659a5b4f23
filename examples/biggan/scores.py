"""FID and Inception Score of folders of generated images, by `torch-fidelity`.

python -m examples.biggan.scores --real ILSVRC2012/val exact g2

torch-fidelity downloads its Inception network; --inception names a file to use instead.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from examples.command import stop

SIDE = 512


class Images(Dataset):
    """The images below a folder, cropped to a square and resized: (3, 512, 512) uint8 each.

    Raises
    ------
    ValueError
        The folder has no images, or an image cannot be decoded.
    """

    def __init__(self, folder: Path, pattern: str):
        self.paths = sorted(path for path in folder.rglob(pattern) if path.name != "grid.png")
        if not self.paths:
            raise ValueError(f"{folder} is no folder with {pattern} files in it")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        path = self.paths[row]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as an image: {error}") from error
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        box = (left, top, left + side, top + side)
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def score(folder: Path, real: Images, name: str, inception: Path | None, device: str) -> dict:
    """Compute FID against `real`, and the Inception Score in 10 parts.

    torch-fidelity stores the statistics of `real` under `name`.

    Raises
    ------
    ImportError
        torch-fidelity is not installed.
    """
    generated = Images(folder, "*.png")
    from torch_fidelity import calculate_metrics

    return calculate_metrics(
        input1=generated, input2=real, input2_cache_name=name, fid=True, isc=True,
        isc_splits=10, cuda=device.startswith("cuda"), verbose=False,
        feature_extractor_weights_path=inception and str(inception),
    )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.biggan.scores",
        description="FID and Inception Score of folders of generated images.",
    )
    parser.add_argument("folders", type=Path, nargs="+", help="written by generate")
    parser.add_argument("--real", type=Path, required=True, help="ImageNet's validation images")
    parser.add_argument("--real-pattern", default="*.JPEG", help="the names of its files")
    parser.add_argument("--inception", type=Path, help="weights of torch-fidelity's network")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    width = max(len(str(folder)) for folder in arguments.folders)
    try:
        real = Images(arguments.real, arguments.real_pattern)
        listed = "\n".join(map(str, real.paths)).encode()
        name = f"thinformer-{hashlib.sha256(listed).hexdigest()[:16]}"
        lines = []
        for folder in arguments.folders:
            found = score(folder, real, name, arguments.inception, arguments.device)
            lines.append(
                f"{folder!s:{width}}  {found['frechet_inception_distance']:8.2f}  "
                f"{found['inception_score_mean']:8.2f}  {found['inception_score_std']:10.2f}"
            )
    except ModuleNotFoundError as error:
        stop(f"{error}; pip install torch-fidelity torchvision")
    except (ValueError, OSError) as error:
        stop(error)
    print(f"{'images':{width}}  {'FID':>8}  {'IS':>8}  {'IS, spread':>10}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
