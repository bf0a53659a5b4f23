"""Run time of the attention of BigGAN-deep-512, with random weights.

python -m examples.biggan.runtime
"""

from __future__ import annotations

import argparse

import torch
from tqdm import tqdm

from examples import timing
from examples.attention import by_name, exact
from examples.command import count, stop

PUBLISHED = ("thinformer:g=2", "uniform:size=128", "strided:size=128")


def recorded(layer, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The query, key and value of the layer for images (B, 512, 64, 64)."""
    seen = []

    def record(query, key, value):
        seen.append((query, key, value))
        return exact(query, key, value)

    layer.attend = record
    with torch.inference_mode():
        layer(image)
    return seen[0]


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.biggan.runtime",
        description="Run time of the attention of BigGAN-deep-512.",
    )
    parser.add_argument("--attention", action="append", metavar="NAME", help="in addition to exact")
    parser.add_argument("--batch", type=count, default=32)
    parser.add_argument("--batches", type=count, default=50, help="batches that are timed")
    parser.add_argument("--warmup", type=int, default=5, help="batches before the timed ones")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    try:
        from examples.biggan import generator

        named = {name: [by_name(name)] for name in arguments.attention or PUBLISHED}
    except ImportError as error:
        stop(f"{error}; pip install --no-deps pytorch-pretrained-biggan")
    except ValueError as error:
        stop(error)
    layer = generator.SelfAttention(generator.settled(generator.SelfAttn(512)), exact)
    layer.to(arguments.device)
    shape = (arguments.batch, 512, 64, 64)
    batches = (
        [recorded(layer, torch.randn(shape, device=arguments.device))]
        for _ in tqdm(range(arguments.warmup + arguments.batches), unit=" batches")
    )
    times = timing.measure({"exact": [exact], **named}, batches, arguments.warmup)
    device = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "CPU"
    print(
        f"{device}, batches of {arguments.batch}, float32; median of {arguments.batches}; "
        "4096 queries and 1024 keys of 64, values of 256\n"
    )
    print(timing.table(times, ["attention"]))


if __name__ == "__main__":
    main()
