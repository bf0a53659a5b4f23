"""Data files of the package: activations of trained encoders, and recorded results to validate."""

from __future__ import annotations

import json
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = files(__name__)
ACTIVATIONS = ("text", "vision", "audio")


def load_activations(name: str) -> dict[str, dict[str, NDArray]]:
    """Return the packaged activations of an encoder: ``layers[layer]["query"]``, "key", "value".

    The arrays are float16, (1, tokens, heads, head dim). ``activations/README.md`` describes the
    encoders and their inputs.

    Parameters
    ----------
    name : str
        One of `ACTIVATIONS`.
    """
    layers: dict[str, dict[str, NDArray]] = {}
    for entry, array in _load(HERE / "activations" / f"{name}.npz").items():
        layer, role = entry.split("_")
        if role != "heads":
            layers.setdefault(layer, {})[role] = array
    return layers


def load_vectors(path: Path | None = None) -> list[tuple[dict[str, Any], dict[str, NDArray]]]:
    """Return the recorded cases for `thinformer validate`: a description and the arrays of each.

    `path` names a file to read instead of the packaged ``vectors.npz``.
    """
    arrays = _load(path or HERE / "vectors.npz")
    return [
        (case, {field: arrays[f"{i}_{field}"] for field in case["fields"]})
        for i, case in enumerate(json.loads(str(arrays["cases"])))
    ]


def _load(path: Traversable) -> dict[str, NDArray]:
    with path.open("rb") as file:
        return dict(np.load(file))
