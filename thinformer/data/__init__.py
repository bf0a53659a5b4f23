"""Data files of the package: activations of trained models, and recorded results to validate."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = files(__name__)
ACTIVATIONS = ("text", "vision", "audio")
FOLDER = "THINFORMER_ACTIVATIONS"  # in the environment: a folder with those that are not installed


def installed_activations() -> tuple[str, ...]:
    """Return those of `ACTIVATIONS` that are there; vision is not in the wheel."""
    return tuple(name for name in ACTIVATIONS if _file(name).is_file())


def left_out() -> str:
    """Return a sentence about those of `ACTIVATIONS` that are not there; empty if all are."""
    names = ", ".join(name for name in ACTIVATIONS if name not in installed_activations())
    if not names:
        return ""
    return (
        f"the activations of {names} are not installed (NOTICE says why); a checkout of the"
        f" repository has them: set {FOLDER} to its folder thinformer/data/activations"
    )


def load_activations(name: str) -> dict[str, dict[str, NDArray]]:
    """Return the recorded activations of an encoder: ``layers[layer]["query"]``, "key", "value".

    The arrays are float16, (1, tokens, heads, head dim). ``activations/README.md`` describes the
    encoders, their inputs and the files.

    Parameters
    ----------
    name : str
        One of `ACTIVATIONS`. "vision" is not in the wheel: a checkout of the repository has it.

    Raises
    ------
    ValueError
        If `name` is another.
    FileNotFoundError
        If the file is not installed.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"name must be one of {', '.join(ACTIVATIONS)}; got {name!r}")
    if name not in installed_activations():
        raise FileNotFoundError(left_out())
    return _layers(_load(_file(name)))


def load_decoder() -> tuple[dict[str, dict[str, NDArray]], list[str]]:
    """Return what a decoder's attention reads of a text of 2,176 tokens, and these tokens.

    The decoder is SmolLM2 with 135M parameters, the text is documentation of this project. Two
    layers are recorded: of each two heads of keys, and the six query heads that share them.
    ``activations/README.md`` describes the file.

    Returns
    -------
    layers : dict
        ``layers["layer4"]`` and ``layers["layer14"]``, each with the float16 arrays "key" and
        "value", (1, 2176, 2, 64), of all tokens, and "query", (1, 384, 6, 64), of the last 384
        tokens. Queries and keys are rotated; query head h attends to the keys of head h // 3.
    tokens : list of str
        The text of each token.

    Raises
    ------
    FileNotFoundError
        If the file is not installed: it is not in the wheel, a checkout of the repository has it.
    """
    file = _file("decoder")
    if not file.is_file():
        raise FileNotFoundError(
            f"the activations of a decoder are not installed; a checkout of the repository has"
            f" them: set {FOLDER} to its folder thinformer/data/activations"
        )
    arrays = _load(file)
    tokens = arrays.pop("tokens")
    return _layers(arrays), tokens.tolist()


def load_vectors(path: Path | None = None) -> list[tuple[dict[str, Any], dict[str, NDArray]]]:
    """Return the recorded cases for `thinformer validate`: a description and the arrays of each.

    Inputs are stored in a small dtype that has these numbers; they are widened to the dtype that
    the case names. `path` names a file to read instead of the packaged ``vectors.npz``.
    """
    arrays = _load(path or HERE / "vectors.npz")
    return [
        (case, {field: arrays[entry] for field, entry in case["fields"].items()})
        for case in json.loads(str(arrays["cases"]))
    ]


def _file(name: str) -> Traversable:
    """The file of an encoder's activations: of the package, or of the folder in the environment."""
    packaged = HERE / "activations" / f"{name}.npz"
    if packaged.is_file() or FOLDER not in os.environ:
        return packaged
    return Path(os.environ[FOLDER]) / f"{name}.npz"


def _layers(arrays: dict[str, NDArray]) -> dict[str, dict[str, NDArray]]:
    """The arrays of a file by layer and role, decoded where they are codes."""
    layers: dict[str, dict[str, NDArray]] = {}
    for entry, array in arrays.items():
        layer, role, *of_codes = entry.split("_")
        if role != "heads" and not of_codes:
            step = arrays.get(f"{entry}_step")
            layers.setdefault(layer, {})[role] = array if step is None else _decoded(array, step)
    return layers


def _decoded(codes: NDArray, step: NDArray) -> NDArray[np.float16]:
    """Numbers from their low and high bytes (2, ...) and the step of each channel."""
    low, high = codes.astype(np.float32)
    return ((low + 256 * high) * step).astype(np.float16)


def _load(path: Traversable) -> dict[str, NDArray]:
    with path.open("rb") as file:
        return dict(np.load(file))
