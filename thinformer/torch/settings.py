"""Which attention layers of a model are thinned, and how."""

from __future__ import annotations

from typing import Any, NamedTuple

from thinformer import _checks
from thinformer.attention import check_correction

MIN_LENGTH = 256  # tokens below which attention stays exact


class Settings(NamedTuple):
    """How a layer attends: `g` or `size`, `correction` and `temperature` of `thinformer_attention`.

    Attention over fewer than `min_length` keys is exact, and so are sequences of fewer tokens in a
    padded batch. A single query, a step of decoding, is exact, as is all of an `exact` layer.
    """

    g: int = 2
    size: int | None = None
    min_length: int = MIN_LENGTH
    exact: bool = False
    correction: str | None = None
    temperature: float | None = None

    def options(self) -> dict[str, Any]:
        """What `checked_attention` takes of them."""
        return {name: value for name, value in self._asdict().items() if name != "exact"}

    def leaves_exact(self, queries: int, keys: int) -> bool:
        """Whether attention of that many tokens to that many is exact."""
        return self.exact or queries == 1 or keys < self.min_length


def checked(
    g: int,
    size: int | None,
    min_length: int,
    correction: str | None,
    temperature: float | None,
    exact: bool = False,
) -> Settings:
    """Return settings, or raise for one that is out of its range."""
    check_correction(correction, temperature)
    return Settings(
        _checks.integer("g", g, 0),
        None if size is None else _checks.integer("size", size, 1),
        _checks.integer("min_length", min_length, 0),
        _checks.boolean("exact", exact),
        correction,
        temperature,
    )
