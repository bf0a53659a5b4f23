"""With NUMBA_DISABLE_JIT, which users of coverage set, each call says what it needs."""

import os
import subprocess
import sys

import pytest
from processes import run

pytestmark = pytest.mark.slow
SAID = "thinformer needs Numba's compiler: unset NUMBA_DISABLE_JIT"


def command(*arguments):
    """What the command does in an environment without the compiler."""
    return subprocess.run(
        [sys.executable, "-m", "thinformer", *arguments], capture_output=True, text=True, cwd="/",
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, check=False,
    )  # fmt: skip


def test_each_call_says_what_it_needs():
    """Points, MMD, Gram matrices and attention, on NumPy arrays and torch tensors."""
    printed = run("""
        import warnings
        import numba
        import numpy as np
        import torch
        import thinformer as t
        from thinformer.kernels import pairwise
        from thinformer.torch import thinformer_attention
        x = np.random.default_rng(0).normal(size=(64, 2))
        q = np.ones((1, 64, 2, 8), np.float32)
        tensor = torch.ones(1, 64, 2, 8)
        own = pairwise(numba.njit(lambda x, y: np.exp(-((x - y) ** 2).sum())))
        warnings.simplefilter("ignore")  # that a plain function is slow
        calls = [
            lambda: t.thin(x, 8, rng=0),
            lambda: t.thin(x, 8, method="kernel-thinning", rng=0),
            lambda: t.thin(x, 8, kernel=own, rng=0),
            lambda: t.kh_compress(x, g=0, rng=0),
            lambda: t.mmd(x, x[:8]),
            lambda: t.compare(x, {"some": np.arange(8)}),
            lambda: t.kernel_halve(x @ x.T, rng=0),
            lambda: t.compress_kv(q, q, g=0, rng=0),
            lambda: t.attention(q, q, q, g=0, rng=0),
            lambda: t.attention(q, q, q, size=8, correction="queries", rng=0),
            lambda: t.compress_cache(q, q, q, 40),
            lambda: t.causal_attention(q, q, q, 40, recent=8),
            lambda: thinformer_attention(tensor, tensor, tensor, g=0),
        ]
        for call in calls:
            try:
                print("no error", call())
            except RuntimeError as error:
                print(error)
    """, NUMBA_DISABLE_JIT="1")  # fmt: skip
    assert printed.splitlines() == [SAID] * 13


def test_a_function_that_is_not_compiled():
    """The user did write njit; the error says why the function is plain all the same."""
    printed = run("""
        import numba
        from thinformer.kernels import of_products
        try:
            of_products(numba.njit(lambda product, x_norm, y_norm: product))
        except TypeError as error:
            print(error)
    """, NUMBA_DISABLE_JIT="1")  # fmt: skip
    assert printed.startswith("phi must be compiled by numba.njit; got <function")
    assert printed.endswith("(unset NUMBA_DISABLE_JIT, with which numba.njit compiles nothing)")


def test_info_has_a_line():
    done = command("info")
    assert done.returncode == 0, done.stderr
    assert f"\nkernel cache     none: {SAID}\n" in done.stdout


@pytest.mark.parametrize("name", ["demo", "validate"])
def test_commands_have_a_line(name):
    done = command(name)
    assert done.returncode == 2
    assert done.stderr.strip() == f"thinformer {name}: {SAID}"
