"""``thinformer warm``: afterwards usual calls compile nothing."""

import pytest
from processes import run

from thinformer.commands import warm
from thinformer.commands.main import main

CALLS = """
import numpy as np, thinformer
from numba.core import event
from thinformer.kernels.catalogue import KERNELS

compiled = []

class Listener(event.Listener):
    def on_start(self, event):
        compiled.append(event.data["dispatcher"].py_func.__qualname__)

    def on_end(self, event):
        pass

rng = np.random.default_rng(0)
points = rng.normal(size=(500, 3))
q, k, v = rng.normal(size=(3, 2, 300, 3, 48))
event.register("numba:compile", Listener())
for dtype in (np.float32, np.float64):
    x = points.astype(dtype)
    thinformer.compare(x, {"few": thinformer.thin(x, 20, weights=np.arange(500), rng=0)})
    thinformer.thin(x, "auto", kernel="laplace", ess=50)
    for kernel in KERNELS:
        few = thinformer.thin(x % 1, 20, kernel=kernel, rng=0)
        thinformer.mmd(x % 1, few, kernel=kernel)
    for method in ("exact", "landmarks", "compress"):
        thinformer.two_sample_test(x[:200], x[200:], kernel=["gaussian", "linear"], method=method)
    heads = [a.astype(dtype) for a in (q, k, v)]
    for way in (None, "nystrom", "queries"):
        thinformer.attention(*heads, g=1, correction=way, rng=0, return_weights=True)
    masses = np.zeros((2, 300, 3))
    thinformer.compress_cache(*heads, 100, scale=0.1, log_mass=masses.astype(dtype))
    thinformer.causal_attention(*heads, 150, block=90)
if WITH_TORCH:
    import torch
    for way in (None, "nystrom", "queries"):
        tensors = (torch.tensor(a, dtype=torch.float32) for a in (q, k, v))
        thinformer.thinformer_attention(*tensors, g=1, correction=way)
print(compiled)
"""


@pytest.mark.nightly
def test_usual_calls_compile_nothing_afterwards(capsys):
    assert main(["warm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line[:48].rstrip() for line in lines]
    assert names[:3] == ["thin, float32", "two_sample_test, float32", "thin, float64"]
    assert 'attention with correction="queries", float64' in names
    assert run(CALLS.replace("WITH_TORCH", str("attention, torch" in names))) == "[]"


def test_where_nothing_is_kept(capsys, monkeypatch):
    monkeypatch.setattr(warm, "kernel_cache", lambda: None)
    assert main(["warm"]) == 2
    assert "no kernel is kept: no folder for them can be written to" in capsys.readouterr().err
