"""Run time of attention in the two token transformers of a T2T-ViT with random weights.

python -m examples.t2t_vit.runtime

Queries, keys and values are those of the layers, for random images. The time depends on their
shapes, not on their entries.
"""

from __future__ import annotations

import argparse

import torch
from tqdm import tqdm

from examples import timing
from examples.attention import exact
from examples.command import count, stop
from examples.t2t_vit.accuracy import PUBLISHED, attentions
from examples.t2t_vit.model import Config, T2TViT


def recorded(model: T2TViT, images: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """The query, key and value of each of the two layers, each (B, T, 1, E)."""
    seen = []

    def record(query, key, value):
        seen.append((query, key, value))
        return exact(query, key, value)

    for layer in model.token_attention:
        layer.attend = record
    with torch.inference_mode():
        model.tokens_to_token(images)
    return seen


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.t2t_vit.runtime",
        description="Run time of attention in the two token transformers of T2T-ViT_t-24.",
    )
    parser.add_argument(
        "--attention", action="append", metavar="NAME", help="in addition to exact; as in accuracy"
    )
    parser.add_argument("--batch", type=count, default=64)
    parser.add_argument("--batches", type=count, default=50, help="batches that are timed")
    parser.add_argument("--warmup", type=int, default=5, help="batches before the timed ones")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    config = Config()
    try:
        named = {name: attentions(name) for name in arguments.attention or PUBLISHED}
    except ValueError as error:
        stop(error)
    torch.manual_seed(0)
    model = T2TViT(config).eval().to(arguments.device)
    shape = (arguments.batch, config.channels, config.image, config.image)
    batches = (
        recorded(model, torch.randn(shape, device=arguments.device))
        for _ in tqdm(range(arguments.warmup + arguments.batches), unit=" batches")
    )
    times = timing.measure({"exact": (exact, exact), **named}, batches, arguments.warmup)
    device = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "CPU"
    print(
        f"{device}, batches of {arguments.batch}, float32; median of {arguments.batches}; "
        "3136 queries and keys of 64 in layer 1, 784 in layer 2\n"
    )
    print(timing.table(times, ["layer 1", "layer 2"]))


if __name__ == "__main__":
    main()
