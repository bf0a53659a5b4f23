"""Generate images with BigGAN-deep-512 and a chosen attention.

python -m examples.biggan.generate --weights biggan-deep-512 --attention thinformer:g=2 --out g2
python -m examples.biggan.generate --random --images 4 --out try

Image number n has the same class and the same noise under every attention, so two folders can be
compared image by image. An interrupted command goes on when it is run again: it keeps the images
that exist.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import truncnorm
from tqdm import tqdm

from examples.attention import by_name
from examples.command import count, stop

GRID = 4  # images in a row of grid.png


def noise(number: int, width: int, truncation: float, seed: int) -> torch.Tensor:
    """The input (width,) of one image: a normal truncated at 2 deviations, times `truncation`."""
    rng = np.random.default_rng((seed, number))
    drawn = truncnorm.rvs(-2, 2, size=width, random_state=rng)
    return torch.from_numpy(truncation * drawn).float()


def generate(model, out: Path, count: int, truncation: float, seed: int, batch: int) -> None:
    """Write images 00000.png, 00001.png, ... and grid.png, the first 16; classes take turns."""
    out.mkdir(parents=True, exist_ok=True)
    config = model.config
    device = next(model.parameters()).device
    names = [out / f"{number:05}.png" for number in range(count)]
    with tqdm(total=count, unit=" images") as bar, torch.inference_mode():
        for first in range(0, count, batch):
            part = range(first, min(first + batch, count))
            if not all(names[number].exists() for number in part):
                z = torch.stack([noise(x, config.z_dim, truncation, seed) for x in part])
                label = torch.zeros(len(part), config.num_classes)
                label[range(len(part)), [x % config.num_classes for x in part]] = 1
                torch.manual_seed(seed * 10**6 + first)  # the seed of the attention's draws
                images = model(z.to(device), label.to(device), truncation)
                for number, pixels in zip(part, _pixels(images), strict=True):
                    # a file gets its name only when it is complete
                    unfinished = out / "unfinished.png"
                    Image.fromarray(pixels).save(unfinished)
                    unfinished.replace(names[number])
            bar.update(len(part))
    grid(names[: GRID * GRID], out / "grid.png")


def _pixels(images: torch.Tensor) -> np.ndarray:
    """(n, 3, h, w) in [-1, 1] to (n, h, w, 3) in 0 to 255."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def grid(paths: list[Path], out: Path, side: int = 256) -> None:
    """Write a picture of the images, four in a row."""
    rows = -(-len(paths) // GRID)
    sheet = Image.new("RGB", (min(len(paths), GRID) * side, rows * side))
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            place = (number % GRID * side, number // GRID * side)
            sheet.paste(image.resize((side, side), Image.Resampling.BICUBIC), place)
    sheet.save(out)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.biggan.generate",
        description="Images of BigGAN-deep-512 under an attention.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", type=Path, help="folder: config.json and pytorch_model.bin")
    source.add_argument("--random", action="store_true", help="random weights, to try it")
    parser.add_argument(
        "--attention",
        default="exact",
        metavar="NAME",
        help="exact, uniform:size=128, strided:size=128, thinformer:g=2, module.function",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the images")
    parser.add_argument("--images", type=count, default=5000, help="classes take turns")
    parser.add_argument("--truncation", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=count, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    try:
        from examples.biggan import generator

        attend = by_name(arguments.attention)
        model = generator.random() if arguments.random else generator.load(arguments.weights)
        generator.swap(model, attend)
        generate(
            model.to(arguments.device), arguments.out, arguments.images, arguments.truncation,
            arguments.seed, arguments.batch,
        )  # fmt: skip
    except ImportError as error:
        stop(f"{error}; pip install --no-deps pytorch-pretrained-biggan")
    except (ValueError, NotImplementedError) as error:
        stop(error)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")


if __name__ == "__main__":
    main()
