"""Problems for the tests, and the bodies that are held to one answer on them.

A body takes (problem, schedule, draws) and returns the indices kept. Problems are of two kinds:
points under a named kernel, and (key, value) pairs.
"""

from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch

from reference import attention as reference_attention
from reference import kernels as reference_kernels
from reference import torch_version as reference_torch
from reference.compress import kh_compress as reference_kh_compress
from thinformer import Draws, compress_kv, kh_compress
from thinformer.support import threads


class Points(NamedTuple):
    """Points (S, d) and the name of a kernel, with its default parameters."""

    points: np.ndarray
    kernel: str


class Attention(NamedTuple):
    """Keys (B, S, H, E) and values (B, S, H, D), under the attention kernel."""

    key: np.ndarray
    value: np.ndarray

    @property
    def scale(self):
        return self.key.shape[-1] ** -0.5


def in_domain(kernel, points):
    """Points where the kernel is defined: the unit cube for sobolev."""
    return points % 1 if kernel == "sobolev" else points


def integers(rng, S, d, dtype):
    """Small integers, on which linear and polynomial kernels are exact in any order of sums."""
    return rng.integers(-2, 3, (S, d)).astype(dtype)


def reference_numpy(problem, schedule, draws):
    """The NumPy specification: indices and the traces of all halvings."""
    if isinstance(problem, Points):
        gram = getattr(reference_kernels, problem.kernel)
        assert len(problem.points) == schedule.length
        return reference_kh_compress(
            lambda x: gram(x, x), problem.points, schedule.rounds, draws.uniforms, draws.coins
        )
    query = problem.key[:, :1]
    *_, indices, traces = reference_attention.thinformer_attention(
        query, problem.key, problem.value, problem.scale, schedule, draws
    )
    return indices, [trace for of_head in traces.values() for trace in of_head]


def reference_torch_body(problem, schedule, draws):
    """The torch specification."""
    draws = Draws(
        tuple(map(torch.as_tensor, draws.uniforms)),
        tuple(map(torch.as_tensor, draws.coins)),
        None if draws.strata is None else torch.as_tensor(draws.strata),
    )
    if isinstance(problem, Attention):
        key, value = torch.as_tensor(problem.key), torch.as_tensor(problem.value)
        return reference_torch.select(key, value, problem.scale, schedule, draws).numpy()

    def gram(rows):
        flat = rows[0].reshape(-1, *rows[0].shape[-2:])
        kernel = getattr(reference_kernels, problem.kernel)
        each = [torch.as_tensor(kernel(x.numpy(), x.numpy())) for x in flat]
        return torch.stack(each).reshape(*rows[0].shape[:-1], -1)

    points = [torch.as_tensor(problem.points)]
    return reference_torch.kh_compress(
        gram, points, schedule.rounds, draws.uniforms, draws.coins
    ).numpy()


def numba_body(problem, schedule, draws):
    """The Numba kernels, through the public functions."""
    if isinstance(problem, Points):
        return kh_compress(problem.points, size=schedule.size, kernel=problem.kernel, draws=draws)
    return compress_kv(problem.key, problem.value, size=schedule.size, draws=draws)


def numba_body_in_pieces(problem, schedule, draws):
    """The same on three threads, with every unit a range and every panel a piece of its own."""
    with patch.multiple(threads, THREAD_FLOPS=1, PIECE_FLOPS=1, _threads=3):
        return numba_body(problem, schedule, draws)


BODIES = {
    "reference torch": reference_torch_body,
    "numba": numba_body,
    "numba in pieces": numba_body_in_pieces,
}


def smallest_margin(traces):
    """The margin of the decision nearest to falling the other way."""
    return min((trace.margin.min() for trace in traces), default=np.inf)
