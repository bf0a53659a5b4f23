"""The rounds of a schedule on the GPU: the launches that halve, one after the other."""

from __future__ import annotations

from typing import Any, NamedTuple

from thinformer.cuda.halve import Geometry, make_kernel
from thinformer.cuda.launches import Launch, span_launches
from thinformer.cuda.shared import make_collect, make_decide_span, make_norms
from thinformer.cuda.values import Variant


class Resident(NamedTuple):
    """The problems as the kernel reads them, on the GPU; see `halve.make_kernel`."""

    window: Any
    geometry: Geometry
    other_window: Any
    other_geometry: Geometry
    parameters: Any
    scales: Any
    sequences: Any


def halve_rounds(
    variant: Variant,
    resident: Resident,
    made: list[Launch],
    tables: tuple[Any, Any],
    draws: Any,
    left: Any,
    kept: Any,
    memory: Any,
    stream: Any = 0,
) -> None:
    """Launch all rounds; the arguments are those of `halve.make_kernel`, on the GPU.

    `memory` is a flat array of `count_memory` numbers, which nothing needs to write before.
    """
    problems = left.shape[0]
    for one in made if problems else ():
        if one.shared is not None:
            halve_shared(variant, resident, one, tables, draws, left, kept, memory, stream)
            continue
        first_round, last_round, share, threads, _ = one
        kernel = make_kernel(variant, threads)[problems * share, threads, stream]
        kernel(*resident, *tables, first_round, last_round, share, draws, left, kept)


def halve_shared(
    variant: Variant,
    resident: Resident,
    one: Launch,
    tables: tuple[Any, Any],
    draws: Any,
    left: Any,
    kept: Any,
    memory: Any,
    stream: Any,
) -> None:
    """Launch a round whose buckets are shared between blocks; see `shared`."""
    i, _, buckets, threads, shared = one
    assert shared is not None
    of_all = left.shape[0] * buckets
    spans = span_launches(shared, of_all, threads)

    def launch(kernel: Any, blocks: int, begin: int) -> None:
        kernel[blocks, threads, stream](
            *resident, *tables, i, shared, begin, draws, left, kept, memory
        )

    if variant.shifted:
        launch(make_norms(variant, threads), of_all * len(spans), 0)
    for begin, blocks in spans:
        launch(make_collect(variant, threads), blocks, begin)
        launch(make_decide_span(variant, threads), of_all, begin)
