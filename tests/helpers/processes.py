"""Code in a process of its own."""

import os
import subprocess
import sys
import textwrap


def run(code, timeout=120, **environment):
    """Run code in a fresh interpreter outside the checkout; return what it printed."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=timeout, cwd="/", check=False,
        env=os.environ | environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


PROBLEM = """
import numpy as np, thinformer
rng = np.random.default_rng(0)
key, value = rng.standard_normal((2, 2, 2048, 4, 32)).astype(np.float32)
def work(seed=0):
    return thinformer.compress_kv(key, value, g=2, rng=seed)
"""
