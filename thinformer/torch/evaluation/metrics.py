"""How far the outputs and states of a model with thinned attention are from the exact ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cosine_similarity


def compared(exact: list[torch.Tensor], thinned: list[torch.Tensor]) -> tuple[str, list[float]]:
    """Return the metric that fits the outputs, and its value for each pair.

    "cosine" of embeddings; "agreement", the share of positions whose largest logit is the same; or
    "difference", the absolute difference of a single logit.
    """
    if not exact[0].is_floating_point():
        return "agreement", [mean((a == b).tolist()) for a, b in zip(exact, thinned, strict=True)]
    if exact[0].numel() == 1:
        return "difference", [float((a - b).abs()) for a, b in zip(exact, thinned, strict=True)]
    return "cosine", [
        float(cosine_similarity(a, b, dim=0)) for a, b in zip(exact, thinned, strict=True)
    ]


def output_of(outputs: Any, pooling: str) -> torch.Tensor:
    """Return the embedding, or the largest logit of each position, or the single logit."""
    logits = getattr(outputs, "logits", None)
    if logits is not None:
        return logits.flatten() if logits.shape[-1] == 1 else logits.argmax(-1).flatten()
    states = getattr(outputs, "last_hidden_state", None)
    if states is None:
        raise ValueError(
            f"the model returns {type(outputs).__name__}, which has neither logits nor "
            f"last_hidden_state to compare"
        )
    return states[0, 0] if pooling == "first" else states.flatten(1, -2).mean(1)[0]


def errors_of_states(exact: list[Any], thinned: list[Any], layers: int) -> list[float]:
    """Return the errors of the states behind each layer, mean over inputs."""
    states = [
        [getattr(outputs, "hidden_states", None) or () for outputs in x] for x in (exact, thinned)
    ]
    if any(len(of_input) != layers + 1 for of_input in states[0]):
        return []
    return [
        mean([_error(b[i + 1], a[i + 1]) for a, b in zip(*states, strict=True)])
        for i in range(layers)
    ]


def cosine_between(ends: list[torch.Tensor]) -> float | None:
    """Return the mean cosine between embeddings of different inputs; None without embeddings."""
    if len(ends) < 2 or not ends[0].is_floating_point() or ends[0].numel() == 1:
        return None
    unit = torch.stack(ends)
    unit = unit / unit.norm(dim=1, keepdim=True)
    n = len(unit)
    return float((unit.sum(0).square().sum() - n) / (n * (n - 1)))


def _error(thinned: torch.Tensor, exact: torch.Tensor) -> float:
    return float((thinned - exact).norm() / exact.norm())


def error_of_heads(thinned: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the error of heads (B, T, H, D), each by itself: their mean."""
    return float(((thinned - exact).norm(dim=(1, 3)) / exact.norm(dim=(1, 3))).mean())


def mean(values: Sequence[float]) -> float:
    """Return the mean of some numbers."""
    return sum(values) / len(values)
