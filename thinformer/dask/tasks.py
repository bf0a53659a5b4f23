"""Tasks on a scheduler that is named, for callers that do not import Dask."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

THREADS = "threads"  # the scheduler of this process; any other is the address of a cluster
SECONDS = 10  # to wait for a cluster


@contextlib.contextmanager
def scheduler(name: str) -> Iterator[None]:
    """Run tasks on the threads of this process, or on the cluster at an address.

    Raises
    ------
    ImportError, OSError
        A package is missing, and which; or there is no scheduler at the address.
    """
    try:
        import dask
    except ImportError:
        raise ImportError("a scheduler needs dask: pip install dask") from None
    if name == THREADS:
        with dask.config.set(scheduler=THREADS):
            yield
        return
    try:
        from distributed import Client
    except ImportError:
        raise ImportError("a cluster needs distributed: pip install distributed") from None
    try:
        client = Client(name, timeout=SECONDS)
    except (OSError, ValueError) as error:
        raise OSError(f"there is no scheduler at {name}: {error}") from None
    with client:
        yield


def computed(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Return what calls of a function return, each of which is a task."""
    from dask import compute, delayed

    return list(compute(*[delayed(function)(*each) for each in calls]))


def array_of(
    read: Callable[..., Any], calls: Sequence[tuple[Any, ...]], lengths: Sequence[int], width: int
) -> Any:
    """Return a Dask array (n, width) of float64, whose blocks are what calls of `read` return."""
    import dask.array as da
    from dask import delayed

    blocks = [
        da.from_delayed(delayed(read)(*each), (length, width), np.float64)
        for each, length in zip(calls, lengths, strict=True)
    ]
    return da.concatenate(blocks)
