"""What goes wrong in a process, each in one of its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


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
    assert "pip install 'thinformer[torch]'" in message


def test_many_threads_at_once():
    """Eight Python threads on different problems, each of which would use several threads."""
    run(PROBLEM + """
from concurrent.futures import ThreadPoolExecutor
expected = [work(seed) for seed in range(8)]
with ThreadPoolExecutor(8) as pool:
    for _ in range(5):
        for got, want in zip(pool.map(work, range(8)), expected, strict=True):
            assert np.array_equal(got, want)
""")  # fmt: skip


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


def test_threads_respect_the_environment():
    code = "import thinformer; print(thinformer.get_num_threads())"
    assert run(code, OMP_NUM_THREADS="1") == "1"
    assert run(code, NUMBA_NUM_THREADS="1", OMP_NUM_THREADS="") == "1"
    assert run(code, OMP_NUM_THREADS="nonsense", NUMBA_NUM_THREADS="") == str(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )


def test_an_error_in_a_thread_reaches_the_caller():
    run("""
        from thinformer import _pool, set_num_threads
        set_num_threads(3)
        def task(first, last):
            if last == 9:
                raise MemoryError("thread")
        try:
            _pool.run(task, 9, 1e9)
        except MemoryError as error:
            assert str(error) == "thread"
        else:
            raise AssertionError
    """)


def test_calls_while_the_interpreter_shuts_down():
    """From a thread that outlives the main one, and from atexit, no pool takes work any more."""
    for late in ("atexit.register(late)", "threading.Thread(target=later).start()"):
        printed = run(PROBLEM + """
import atexit, threading, time
expected = work()
def late():
    print(np.array_equal(work(), expected))
def later():
    threading.main_thread().join()
    late()
""" + late)  # fmt: skip
        assert printed == "True"


def test_cache_is_used_and_follows_the_sources(tmp_path):
    """A second process compiles nothing; one whose sources differ does."""
    code = """
        import shutil, sys
        from pathlib import Path
        import thinformer
        copy = Path({folder!r}) / "thinformer"
        if not copy.exists():
            shutil.copytree(Path(thinformer.__file__).parent, copy,
                            ignore=shutil.ignore_patterns("__pycache__"))
        for name in [name for name in sys.modules if name.startswith("thinformer")]:
            del sys.modules[name]
        sys.path.insert(0, {folder!r})
        import numpy as np
        from thinformer import cpu, kernel_halve
        assert cpu.__file__.startswith({folder!r})
        kernel_halve(np.eye(4), rng=0)
        print(sum(cpu.halve_gram.stats.cache_hits.values()))
    """.format(folder=str(tmp_path))
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert run(code, **cache) == "0"
    assert run(code, **cache) == "1"
    halving = tmp_path / "thinformer" / "halving.py"  # a callee in another file
    halving.write_text(halving.read_text() + "\n# edited\n")
    assert run(code, **cache) == "0"


def test_no_writable_cache(tmp_path):
    """Where nothing can be cached the kernels are compiled, and all works."""
    run("""
        from numba.core import caching
        caching.FunctionCache.__init__ = lambda *a, **k: (_ for _ in ()).throw(
            RuntimeError("cannot cache function: no locator available"))
        import numpy as np, thinformer
        assert len(thinformer.kernel_halve(np.eye(4), rng=0)) == 2
    """)
    run("""
        import numpy as np
        from thinformer import cpu, kernel_halve
        kernel_halve(np.eye(4), rng=0)
        assert cpu.halve_gram.stats.cache_path is None
    """, THINFORMER_CACHE="0")  # fmt: skip


def test_new_shapes_and_layouts_do_not_recompile():
    count = run("""
        import numpy as np
        from thinformer import Draws, attention, cpu, kernel_halve, kh_compress
        rng = np.random.default_rng(0)
        def calls(dtype):
            for B, S, H, E, D in ((1, 100, 1, 4, 4), (2, 300, 3, 8, 5), (1, 64, 2, 1, 1)):
                q, k, v = (rng.standard_normal(s).astype(dtype)
                           for s in ((B, 3, H, E), (B, S, H, E), (B, S, H, D)))
                k.flags.writeable = False
                attention(q, k, v, g=0, rng=0)
                attention(q, k[:, ::2], np.asfortranarray(v)[:, ::2], size=5, rng=0)
                for kernel in ("linear", "gaussian", "polynomial"):
                    kh_compress(k[0, :, 0], kernel=kernel, g=0, rng=0)
                    kh_compress(v.T, kernel=kernel, size=1, rng=0)
                kernel_halve(np.eye(S, dtype=dtype), rng=0)
                kernel_halve(np.eye(8, dtype=dtype)[::-1, ::-1], rng=0)
                u = np.zeros(4)
                u.flags.writeable = False
                kernel_halve(np.eye(8, dtype=dtype), draws=Draws((u,), ([True],)))
        calls(np.float32)
        calls(np.float64)
        calls(np.float16)
        print([len(f.signatures) for f in (cpu.halve_buckets, cpu.halve_gram, cpu.scan)])
    """)
    assert count == "[2, 2, 2]"


def test_every_index_is_in_bounds():
    """All kernels compiled with Numba's bounds checks, over sizes of every parity."""
    run("""
        import numpy as np
        from thinformer import attention, kernel_halve, kh_compress
        from thinformer.kernels import KERNELS
        rng = np.random.default_rng(0)
        for S in (1, 2, 3, 5, 8, 33, 64, 67, 131, 300):
            x = rng.standard_normal((2, S, 3))
            kernel_halve(x @ x.swapaxes(1, 2), rng=0)
            for size in (1, 3, S // 2 + 1, S):
                for kernel in KERNELS:
                    kh_compress(x, size=size, kernel=kernel, rng=0)
                q, k, v = (rng.standard_normal((2, n, 2, d)) for n, d in ((3, 5), (S, 5), (S, 1)))
                attention(q, k, v, size=size, rng=0)
    """, NUMBA_BOUNDSCHECK="1", THINFORMER_CACHE="0")  # fmt: skip


def test_package_does_not_write_beside_itself_or_into_the_working_directory(tmp_path):
    before = sorted(Path(tmp_path).iterdir())
    subprocess.run(
        [sys.executable, "-c", "import numpy, thinformer; thinformer.kernel_halve(numpy.eye(4))"],
        cwd=tmp_path, check=True, timeout=120,
    )  # fmt: skip
    assert sorted(Path(tmp_path).iterdir()) == before
