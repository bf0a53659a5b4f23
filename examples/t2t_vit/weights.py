"""Load a checkpoint strictly: all names and shapes must fit, or an error lists what does not."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch
from torch import nn

SHOWN = 5  # names in an error; a checkpoint of another model has hundreds that do not fit


def load(model: nn.Module, path: Path | str) -> None:
    """Load a checkpoint in the published form: the running mean of the weights, `state_dict_ema`.

    Raises
    ------
    ValueError
        The file is missing or is no checkpoint; names are missing or extra; or shapes differ. The
        message is one line and lists them.
    """
    state = _state(Path(path))
    own = model.state_dict()
    problems = [
        _listed("missing", [name for name in own if name not in state]),
        _listed("not of this model", [name for name in state if name not in own]),
        _listed(
            "of another shape",
            [
                f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
                for name in own
                if name in state and state[name].shape != own[name].shape
            ],
        ),
    ]
    if any(problems):
        raise ValueError(f"{path} does not fit the model; {'; '.join(filter(None, problems))}")
    model.load_state_dict(state)


def fingerprint(path: Path | str) -> str:
    """The first 12 hexadecimal digits of a file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist or is not a file; it must be a checkpoint")
    try:
        # published checkpoints hold the arguments of their training too
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        first = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(f"{path} is no checkpoint that torch can read: {first}") from error
    if not isinstance(checkpoint, dict) or "state_dict_ema" not in checkpoint:
        held = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint)
        raise ValueError(f"{path} has no state_dict_ema; it has {held}"[:300])
    return checkpoint["state_dict_ema"]


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what}: {', '.join(names[:SHOWN])}{more}" if names else ""
