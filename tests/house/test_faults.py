"""What goes wrong in a process, each in one of its own."""

import os
import subprocess
import sys

import pytest
from processes import PROBLEM, run

pytestmark = pytest.mark.slow


def test_import_loads_neither_numba_nor_torch_and_compiles_nothing():
    loaded = run("""
        import sys, thinformer
        thinformer.Kernel, thinformer.Schedule, thinformer.__version__
        print([name for name in ("numba", "torch", "scipy", "matplotlib") if name in sys.modules])
    """)
    assert loaded == "[]"


def test_without_torch_the_error_says_what_to_install():
    message = run("""
        import sys
        sys.modules["torch"] = None  # as if it were not installed
        import thinformer
        try:
            thinformer.ThinformerAttention
        except ImportError as error:
            print(error)
    """)
    assert message.endswith(", which is not installed: pip install torch")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forked_child_after_a_parallel_call():
    run(PROBLEM + """
import os, warnings
expected = work()
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of any fork beside threads
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(work(), expected) else 3)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(work(), expected)
""")  # fmt: skip


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_after_a_parallel_call(method, tmp_path):
    import multiprocessing

    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    (tmp_path / "job.py").write_text(PROBLEM + f"""
import multiprocessing, warnings
if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of any fork beside threads
    expected = [work(seed) for seed in range(4)]
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        for got, want in zip(pool.map(work, range(4)), expected, strict=True):
            assert np.array_equal(got, want)
""")  # fmt: skip
    subprocess.run([sys.executable, str(tmp_path / "job.py")], check=True, timeout=120)


def test_out_of_memory():
    """The error says how much was asked for, and the next call is right."""
    run(PROBLEM + """
import resource
query = np.ones((1, 40_000, 8, 32), np.float32)
def attend(tokens):
    arrays = query[:, :tokens], query, query
    return thinformer.attention(*arrays, size=40_000, rng=0, return_weights=True)
expected = work()
attend(64)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
try:
    attend(40_000)
except MemoryError as error:
    assert "47.7 GiB" in str(error), error  # 8 x 40,000 x 40,000 weights of 4 bytes
else:
    raise AssertionError("no MemoryError")
assert np.array_equal(work(), expected)
""")  # fmt: skip


def soak(seconds):
    """Random shapes from four threads for some time, against a serial replay from the seeds."""
    print(run(f"""
        import resource, time, zlib
        from concurrent.futures import ThreadPoolExecutor
        import numpy as np, thinformer

        def problem(seed):
            rng = np.random.default_rng(seed)
            B, H = rng.integers(1, 4, 2)
            S, E, D = rng.integers(1, 3000), rng.integers(1, 80), rng.integers(1, 80)
            dtype = rng.choice(["f4", "f8"])
            key = rng.standard_normal((B, S, H, E)).astype(dtype)
            value = rng.standard_normal((B, S, H, D)).astype(dtype)
            kept = thinformer.compress_kv(key, value, g=int(rng.integers(0, 4)), rng=seed)
            return zlib.crc32(kept.tobytes())  # the results themselves would fill the memory

        results, seed, peak = {{}}, 0, []
        end = time.monotonic() + {seconds}
        with ThreadPoolExecutor(4) as pool:
            while time.monotonic() < end:
                batch = range(seed, seed + 40)
                results |= dict(zip(batch, pool.map(problem, batch)))
                seed += 40
                peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        thinformer.set_num_threads(1)
        replayed = range(0, seed, max(1, seed // 200))
        for s in replayed:
            assert problem(s) == results[s], s
        half = len(peak) // 2
        assert peak[-1] < 1.1 * peak[half], peak  # flat in the second half
        print(seed, "problems,", len(list(replayed)), "replayed, peak", peak[half] // 1024, "->",
              peak[-1] // 1024, "MB")
    """, timeout=seconds * 3 + 120))  # fmt: skip


@pytest.mark.nightly
def test_soak_briefly():
    soak(6)


@pytest.mark.soak
def test_soak():
    soak(600)
