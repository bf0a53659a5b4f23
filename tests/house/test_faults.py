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
    cores = "from thinformer.support.threads import available_cores; print(available_cores())"
    assert run(code, OMP_NUM_THREADS="nonsense", NUMBA_NUM_THREADS="") == run(cores)


def test_an_error_in_a_thread_reaches_the_caller():
    run("""
        import threading
        from thinformer import set_num_threads
        from thinformer.support import threads
        set_num_threads(3)
        met = threading.Barrier(3)
        def task(first, last):
            met.wait(10)
            if threading.current_thread() is not threading.main_thread():
                raise MemoryError("thread")
        try:
            threads.run(task, 3, 1e9)
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
        from thinformer import kernel_halve
        from thinformer.cpu import halve
        assert halve.__file__.startswith({folder!r})
        kernel_halve(np.eye(4), rng=0)
        print(sum(halve.halve_gram.stats.cache_hits.values()))
    """.format(folder=str(tmp_path))
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert run(code, **cache) == "0"
    assert run(code, **cache) == "1"
    halving = tmp_path / "thinformer" / "halving" / "steps.py"  # a callee in another file
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
        from thinformer import kernel_halve
        from thinformer.cpu import halve
        kernel_halve(np.eye(4), rng=0)
        assert halve.halve_gram.stats.cache_path is None
    """, THINFORMER_CACHE="0")  # fmt: skip


def test_new_shapes_and_layouts_do_not_recompile():
    count = run("""
        import numpy as np
        from thinformer import Draws, attention, kernel_halve, kh_compress
        from thinformer.cpu import draw, halve, softmax
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
        print([len(f.signatures) for f in (halve.halve_buckets, halve.halve_gram, draw.scan,
                                            softmax.attend_blocks)])
    """)
    assert count == "[4, 2, 2, 2]"  # products and points in two dtypes


def test_every_index_is_in_bounds():
    """All kernels compiled with Numba's bounds checks, over sizes of every parity."""
    run("""
        import numpy as np
        from thinformer import attention, kernel_halve, kh_compress
        from thinformer.kernels.catalogue import KERNELS
        rng = np.random.default_rng(0)
        for S in (1, 2, 3, 5, 8, 33, 64, 67, 131, 300):
            x = rng.standard_normal((2, S, 3))
            kernel_halve(x @ x.swapaxes(1, 2), rng=0)
            for size in (1, 3, S // 2 + 1, S):
                for kernel in KERNELS:
                    kh_compress(x % 1, size=size, kernel=kernel, rng=0)
                q, k, v = (rng.standard_normal((2, n, 2, d)) for n, d in ((70, 5), (S, 5), (S, 1)))
                attention(q, k, v, size=size, rng=0, return_weights=True)
    """, NUMBA_BOUNDSCHECK="1", THINFORMER_CACHE="0")  # fmt: skip


def test_package_does_not_write_beside_itself_or_into_the_working_directory(tmp_path):
    before = sorted(Path(tmp_path).iterdir())
    subprocess.run(
        [sys.executable, "-c", "import numpy, thinformer; thinformer.kernel_halve(numpy.eye(4))"],
        cwd=tmp_path, check=True, timeout=120,
    )  # fmt: skip
    assert sorted(Path(tmp_path).iterdir()) == before


def test_container_quota(tmp_path, monkeypatch):
    from thinformer import get_num_threads
    from thinformer.support import threads

    for variable in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    unlimited = threads.available_cores()
    for text, cores in (("100000 100000", 1), ("50000 100000", 1), ("max 100000", unlimited)):
        quota = tmp_path / text.replace(" ", "-")
        quota.write_text(text + "\n")
        monkeypatch.setattr(threads, "CGROUP", quota)
        assert threads.available_cores() == cores
        assert get_num_threads() == cores


def test_interrupt_stops_all_threads_soon():
    """A KeyboardInterrupt in the middle of hours of work ends it, and leaves a usable pool."""
    run("""
        import threading, time
        import thinformer
        from thinformer.support import threads
        thinformer.set_num_threads(3)
        done, begun = [], threading.Event()
        def task(first, last):
            assert last - first == 1  # pieces of one unit
            if threading.current_thread() is threading.main_thread():
                begun.wait()
                raise KeyboardInterrupt
            begun.set()
            done.append(first)
        try:
            threads.run(task, 10**6, 1e16)
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("not interrupted")
        count = len(done)
        assert count < 10**6 / 2, count
        assert len(done) == count  # nothing runs on
        done.clear()
        threads.run(lambda first, last: done.append(first), 9, 1e7)
        assert sorted(done) == list(range(9))
    """)


def test_interrupt_stops_a_long_unit():
    """A unit that is hours of work yields, and is left off at the next piece."""
    run("""
        import threading
        from thinformer import set_num_threads
        from thinformer.support import threads
        set_num_threads(2)
        pieces, begun = [], threading.Event()
        def task(first, last):
            if threading.current_thread() is threading.main_thread():
                begun.wait()
                raise KeyboardInterrupt
            for piece in range(10**7):
                pieces.append(piece)
                begun.set()
                yield
        try:
            threads.run(task, 2, 1e16)
        except KeyboardInterrupt:
            assert len(pieces) < 10**6, len(pieces)
        else:
            raise AssertionError("not interrupted")
    """)


def test_a_call_does_not_wait_for_another_callers_work():
    """A short call beside a long one that keeps all of the pool's threads busy."""
    run("""
        import threading
        from thinformer import set_num_threads
        from thinformer.support import threads
        set_num_threads(2)
        short_is_done = threading.Event()
        def long(first, last):
            assert short_is_done.wait(60)
        waiting = threading.Thread(target=threads.run, args=(long, 2, 1e9))
        waiting.start()
        done = []
        threads.run(lambda first, last: done.append(first), 8, 1e9)
        assert sorted(done) == list(range(8))
        short_is_done.set()
        waiting.join()
    """)


def test_results_are_complete_where_no_thread_can_be_started():
    """An item that stays queued may yet be picked up: then it is waited for."""
    run("""
        import threading
        from thinformer import set_num_threads
        from thinformer.support import threads
        set_num_threads(4)
        release, picked, last = threading.Event(), threading.Event(), threading.Event()
        threads._executor(3)  # room for three threads, of which the next line starts one
        long = threading.Thread(target=threads.run, args=(lambda *_: release.wait(60), 2, 1e9))
        long.start()
        def failing(self):
            raise RuntimeError("can't start new thread")
        threading.Thread.start = failing
        done = []
        def task(first, last_of_range):
            if threading.current_thread() is threading.main_thread():
                release.set()
                assert picked.wait(60)
                if first == 2:
                    last.set()
            elif not picked.is_set():
                picked.set()
                assert last.wait(60)
                sum(range(10**6))  # the caller is through long before
            done.append(first)
        threads.run(task, 3, 1e9)
        assert sorted(done) == [0, 1, 2], done
        long.join()
    """)


def test_an_error_stops_the_other_threads():
    run("""
        import threading
        from thinformer import set_num_threads
        from thinformer.support import threads
        set_num_threads(2)
        failed, done = threading.Event(), []
        def task(first, last):
            if threading.current_thread() is not threading.main_thread():
                failed.set()
                raise MemoryError("thread")
            failed.wait(10)
            done.append(first)
        try:
            threads.run(task, 10**5, 1e15)
        except MemoryError:
            assert len(done) < 10**4, len(done)
        else:
            raise AssertionError
    """)


def test_interrupt_by_signal():
    """SIGINT during one long computation: it ends as an interrupt, and the next one is right."""
    run(PROBLEM + """
import os, signal, threading
big = np.random.default_rng(1).standard_normal((400_000, 32)).astype(np.float32)
expected = work()
thinformer.kh_compress(big[:1000], rng=0)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    for _ in range(1000):
        thinformer.kh_compress(big, g=4, rng=0)
except KeyboardInterrupt:
    pass
else:
    raise AssertionError("not interrupted")
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


def test_data_loader_workers(tmp_path):
    """Workers of a torch DataLoader that thin in __getitem__, after the parent did."""
    (tmp_path / "job.py").write_text(PROBLEM + """
import torch
from torch.utils.data import DataLoader, Dataset

class Coresets(Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, seed):
        return torch.from_numpy(work(seed))

if __name__ == "__main__":
    expected = [work(seed) for seed in range(6)]
    thinformer.ThinformerAttention()(*torch.randn(3, 1, 300, 2, 8))
    for got, want in zip(DataLoader(Coresets(), num_workers=2, batch_size=None), expected):
        assert np.array_equal(got, want)
""")  # fmt: skip
    subprocess.run([sys.executable, str(tmp_path / "job.py")], check=True, timeout=120)


TORCH_PROBLEM = """
import numpy as np, torch, thinformer
from thinformer.torch.choose.operators import select
torch.set_num_threads(2)
key, value = torch.randn(2, 2, 2048, 4, 32, generator=torch.Generator().manual_seed(0))
def work(seed=0):
    return select(key, value, None, torch.tensor(seed), 2, None, None, "even", 0)[0]
"""


def test_torchs_threads_from_many_threads_at_once():
    run(TORCH_PROBLEM + """
from concurrent.futures import ThreadPoolExecutor
from thinformer.torch.choose.openmp import team
assert team() is not None
expected = [work(seed) for seed in range(8)]
with ThreadPoolExecutor(8) as pool:
    for _ in range(3):
        for got, want in zip(pool.map(work, range(8)), expected, strict=True):
            assert torch.equal(got, want)
""")  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forked_child_after_work_on_torchs_threads():
    """Torch's threads are not in the child, where its runtime would wait for them for ever."""
    run(TORCH_PROBLEM + """
import os, warnings
expected = work()
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of any fork beside threads
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(work(), expected) else 3)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(work(), expected)
""")  # fmt: skip


def test_an_error_on_torchs_threads_reaches_the_caller():
    run("""
        import torch
        from thinformer.support import threads
        from thinformer.torch.choose.openmp import team
        torch.set_num_threads(2)
        def task(first, last):
            raise ZeroDivisionError(first)
        with threads.on(team()):
            try:
                threads.run(task, 100, 1e12)
            except ZeroDivisionError:
                done = []
                threads.run(lambda first, last: done.extend(range(first, last)), 100, 1e12)
                assert sorted(done) == list(range(100))
            else:
                raise AssertionError
    """)


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


def test_blas_settings_are_left_alone():
    """No library's number of threads is changed, not even for the time of a call."""
    run(PROBLEM + """
from scipy.linalg import blas
import torch
before = torch.get_num_threads()
torch.set_num_threads(1)
expected = work()
assert torch.get_num_threads() == 1
torch.set_num_threads(before)
assert np.array_equal(work(), expected)
""")  # fmt: skip


def test_several_processes_start_at_once_with_an_empty_cache(tmp_path):
    code = "import numpy as np, thinformer; print(thinformer.kernel_halve(np.eye(6), rng=0))"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    starting = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", code], env=environment, cwd="/",
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]  # fmt: skip
    ended = [process.communicate(timeout=120) for process in starting]
    assert [process.returncode for process in starting] == [0] * 4, ended
    assert len({printed for printed, _ in ended}) == 1


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can write into any folder"
)
def test_read_only_home_and_package(tmp_path):
    read_only = tmp_path / "read-only"
    read_only.mkdir(mode=0o500)
    environment = {"HOME": str(read_only), "NUMBA_CACHE_DIR": str(read_only / "cache")}
    assert run("import numpy as np, thinformer; print(len(thinformer.kernel_halve(np.eye(4))))",
               **environment) == "2"  # fmt: skip


def test_cache_that_cannot_be_written_later(tmp_path):
    """A cache folder that turns out to be a file: the first call still succeeds."""
    (tmp_path / "cache").write_text("not a folder")
    assert run("import numpy as np, thinformer; print(len(thinformer.kernel_halve(np.eye(4))))",
               NUMBA_CACHE_DIR=str(tmp_path / "cache")) == "2"  # fmt: skip


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


def test_soak_briefly():
    soak(6)


@pytest.mark.soak
def test_soak():
    soak(600)


def test_processor_with_shorter_vectors():
    """The same keys with blocks of half the rows and half the columns, of float32 and float64."""
    code = PROBLEM + """
for dtype in ("f4", "f8"):
    for S, E, D in ((600, 33, 8), (256, 16, 70)):
        k, v = rng.standard_normal((1, S, 2, E)).astype(dtype), rng.standard_normal((1, S, 2, D))
        print(thinformer.compress_kv(k, v.astype(dtype), size=40, rng=0).tolist())
"""  # fmt: skip
    shorter = """
import llvmlite.binding
features = llvmlite.binding.get_host_cpu_features()
features["avx512f"] = False
llvmlite.binding.get_host_cpu_features = lambda: features
from thinformer.cpu import simd
assert (simd.BYTES, simd.ROWS) == (32, 8)
"""
    assert run(shorter + code, THINFORMER_CACHE="0") == run(code)
