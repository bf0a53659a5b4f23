"""Activations to measure on: those in the package, and those in files of yours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from thinformer.attending.arguments import check_shapes
from thinformer.data import ACTIVATIONS, installed_activations, load_activations
from thinformer.files.messages import reading

NAME = re.compile(r"(.+)_(query|key|value|heads)")

Layers = dict[str, list[NDArray]]  # query, key and value, float32


def packaged(name: str) -> Layers:
    """Return the recorded activations of a trained encoder, one of `ACTIVATIONS`."""
    return {
        layer: [arrays[role].astype(np.float32) for role in ("query", "key", "value")]
        for layer, arrays in load_activations(name).items()
    }


def load(paths: Sequence[Path]) -> dict[str, Layers]:
    """Return activations by name: of files, and packaged ones where a path is their name.

    Without a path they are the packaged ones that are installed.
    """
    inputs: dict[str, Layers] = {}
    for path in paths or map(Path, installed_activations()):
        if path.stem in inputs:
            raise ValueError(f"{path}: another file has this name; the table could not tell them")
        recorded = str(path) in ACTIVATIONS
        inputs[path.stem] = layers = packaged(str(path)) if recorded else load_file(path)
        first, shape = next((layer, arrays[1].shape[:3]) for layer, arrays in layers.items())
        for layer, (_, key, _) in layers.items():
            if key.shape[:3] != shape:
                raise ValueError(
                    f"{path}: layers must have the same number of sequences, keys and heads; "
                    f"{first} has {shape}, {layer} {key.shape[:3]}"
                )
    return inputs


def load_file(path: Path) -> Layers:
    """Load activations from an .npz file of arrays LAYER_query, LAYER_key and LAYER_value.

    They are (1, tokens, heads, head dim), of float16, float32 or float64. The file may also hold
    arrays LAYER_heads.
    """
    # opened here: NumPy leaves a broken file open
    with path.open("rb") as stream, reading(path, ".npz"):
        file = np.load(stream, allow_pickle=False)
        arrays = {} if isinstance(file, np.ndarray) else {name: file[name] for name in file.files}
    if isinstance(file, np.ndarray):
        raise ValueError(f"{path}: holds a single array; activations are an .npz of named ones")
    found: dict[str, dict[str, NDArray]] = {}
    for name, array in arrays.items():
        match = NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{path}: takes arrays named as in layer0_query; got {name!r}")
        if match[2] != "heads":
            found.setdefault(match[1], {})[match[2]] = _float32(path, name, array)
    if not found:
        raise ValueError(f"{path}: has no arrays named as in layer0_query")
    layers: Layers = {}
    for layer, roles in found.items():
        missing = [role for role in ("query", "key", "value") if role not in roles]
        if missing:
            raise ValueError(f"{path}: has no {layer}_{missing[0]}")
        query, key, value = layers[layer] = [roles[role] for role in ("query", "key", "value")]
        try:
            check_shapes(key.shape, value.shape, query.shape)
        except ValueError as error:
            raise ValueError(f"{path}: {layer}: {error}") from None
    return layers


def _float32(path: Path, name: str, array: NDArray) -> NDArray:
    """The array in float32; raises where it does not hold finite floats."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        got = getattr(array, "dtype", "no array")
        raise ValueError(f"{path}: {name} must be of floats; got {got}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: {name} holds NaN, infinity or more than float32 can hold")
    return array
