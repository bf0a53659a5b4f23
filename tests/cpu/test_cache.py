"""Machine code: compiled once, kept on disk, and compiled anew when its sources change."""

import contextlib
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numba
import numpy as np
import pytest
from processes import PROBLEM, run

import thinformer
from thinformer.cpu import jit, rows

pytestmark = pytest.mark.slow
FAST = {"NUMBA_OPT": "0"}  # less optimised machine code, which cannot be cached
SOURCES = "kernels/phi.py", "halving/steps.py", "cpu/tiles.py", "cpu/folder/new.py"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package whose machine code is in a cache of its own."""
    folder = tmp_path_factory.mktemp("copy")
    package = Path(thinformer.__file__).parent
    shutil.copytree(
        package, folder / "thinformer", ignore=shutil.ignore_patterns("__pycache__", "data")
    )
    assert cache_hits(folder) == 0
    assert cache_hits(folder) == 1
    return folder


def cache_hits(folder):
    """How many kernels of the copy a new process finds compiled: 0 or 1."""
    hits = run(f"""
        import sys
        sys.path.insert(0, {str(folder)!r})
        import numpy as np
        from thinformer import kernel_halve
        from thinformer.cpu import halve
        assert halve.__file__.startswith({str(folder)!r})
        kernel_halve(np.eye(4), rng=0)
        print(sum(halve.halve_gram.stats.cache_hits.values()))
    """, NUMBA_CACHE_DIR=str(folder / "cache"))  # fmt: skip
    return int(hits)


def hash_of_sources(folder):
    """What a new process would put into the names of the files of the cache."""
    path = folder / "thinformer" / "cpu" / "jit.py"
    spec = importlib.util.spec_from_file_location("jit_of_copy", path)
    module = importlib.util.module_from_spec(spec)
    with patch("numba.core.event.register"):  # it has one listener already
        spec.loader.exec_module(module)
    return module.source_hash()


@contextlib.contextmanager
def edited(path):
    """A file with a line more, or a file that was not there; afterwards as it was."""
    before = path.read_bytes() if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((before or b"") + b"\n# edited\n")
    yield
    if before is None:
        shutil.rmtree(path.parent)
    else:
        path.write_bytes(before)


@pytest.mark.parametrize("file", SOURCES)
def test_edited_sources_have_another_name(file, copy):
    """Of each folder of compiled code, callees in other files and folders of it included."""
    before = hash_of_sources(copy)
    assert before == jit.source_hash()
    with edited(copy / "thinformer" / file):
        assert hash_of_sources(copy) != before
    assert hash_of_sources(copy) == before


@pytest.mark.parametrize(
    "file", [SOURCES[0], *(pytest.param(file, marks=pytest.mark.nightly) for file in SOURCES[1:])]
)
def test_edited_sources_are_compiled_anew(file, copy):
    with edited(copy / "thinformer" / file):
        assert cache_hits(copy) == 0
    assert cache_hits(copy) == 1


def test_edited_commands_compile_nothing(copy):
    files = sorted((copy / "thinformer" / "commands").rglob("*.py"))
    assert files
    with contextlib.ExitStack() as stack:
        for file in files:
            stack.enter_context(edited(file))
        assert cache_hits(copy) == 1


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
    """, THINFORMER_CACHE="0", **FAST)  # fmt: skip


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
    """, NUMBA_BOUNDSCHECK="1", THINFORMER_CACHE="0", **FAST)  # fmt: skip


def test_package_does_not_write_beside_itself_or_into_the_working_directory(tmp_path):
    before = sorted(Path(tmp_path).iterdir())
    subprocess.run(
        [sys.executable, "-c", "import numpy, thinformer; thinformer.kernel_halve(numpy.eye(4))"],
        cwd=tmp_path, check=True, timeout=120,
    )  # fmt: skip
    assert sorted(Path(tmp_path).iterdir()) == before


def test_several_processes_start_at_once_with_an_empty_cache(tmp_path):
    code = "import numpy as np, thinformer; print(thinformer.kernel_halve(np.eye(6), rng=0))"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    starting = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", code], env=environment, cwd="/",
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]  # fmt: skip
    ended = [process.communicate(timeout=120) for process in starting]
    assert [process.returncode for process in starting] == [0] * 3, ended
    assert len({printed for printed, _ in ended}) == 1


def test_two_processes_that_store_at_once_do_not_mix_their_code(tmp_path, monkeypatch):
    """The second process writes its index between the index and the machine code of the first."""
    module = tmp_path / "twice.py"
    module.write_text("def twice(x):\n    return 2 * x\n")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))

    def of_a_new_process():
        return jit.kernel(runpy.run_path(str(module))["twice"])

    first, second = of_a_new_process(), of_a_new_process()
    files = [each._cache._cache_file for each in (first, second)]
    save, later = files[0]._save_data, []
    monkeypatch.setattr(files[0], "_save_data", lambda *what: later.append(what))
    monkeypatch.setattr(files[1], "_load_index", dict)  # it read the index before the first wrote
    assert first(2) == 4
    assert second(0.5) == 1.0
    save(*later[0])
    found = of_a_new_process()
    assert found(0.75) == 1.5
    assert found(3) == 6
    assert found.stats.cache_hits[found.signatures[0]] == 1  # the code of the second


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


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_processor_with_shorter_vectors(dtype):
    """The same keys with blocks of half the rows and half the columns."""
    code = (
        PROBLEM
        + f"""
for S, E, D in ((600, 33, 8), (256, 16, 70)):
    k, v = (rng.standard_normal((1, S, 2, dim)).astype("{dtype}") for dim in (E, D))
    print(thinformer.compress_kv(k, v, size=40, rng=0).tolist())
"""
    )
    shorter = """
import llvmlite.binding
features = llvmlite.binding.get_host_cpu_features()
features["avx512f"] = False
llvmlite.binding.get_host_cpu_features = lambda: features
from thinformer.cpu import simd
assert (simd.BYTES, simd.ROWS) == (32, 4)
"""
    assert run(shorter + code, THINFORMER_CACHE="0") == run(code)


# the functions that Numba compiles from here on
LISTENING = """
        from numba.core import event

        functions = set()

        class Listener(event.Listener):
            def on_start(self, event):
                functions.add(event.data["dispatcher"].py_func)

            def on_end(self, event):
                pass

        event.register("numba:compile", Listener())
"""


@pytest.mark.nightly
def test_what_a_call_does_not_use_is_not_compiled():
    compiled = run(LISTENING + """
        import numpy as np
        from thinformer import attention, kernels, kh_compress

        def compiles(call):
            functions.clear()
            call()
            named = {"tabulate_of_products", "tabulate_of_distances", "tabulate_sobolev",
                     "tabulate_stein", "gather_factor", "weigh_sums", "clamp",
                     "products_of_columns"}
            print(sorted({function.__name__ for function in functions} & named))

        x = np.random.default_rng(0).random((64, 2))
        both = kernels.gaussian() + kernels.sobolev()
        compiles(lambda: kh_compress(x, size=8, kernel="gaussian", rng=0))
        compiles(lambda: kh_compress(x, size=8, kernel=kernels.laplace() + kernels.energy(), rng=0))
        compiles(lambda: kh_compress(x, size=8, kernel=both, rng=0))
        labelled = kernels.with_labels("sobolev", x)
        compiles(lambda: kh_compress(x, size=8, kernel=labelled, rng=0))
        compiles(lambda: attention(*np.random.default_rng(0).random((3, 1, 64, 1, 8)), size=8))
    """, THINFORMER_CACHE="0", **FAST)  # fmt: skip
    assert compiled.splitlines() == [
        "['tabulate_of_distances']",
        "[]",
        "['tabulate_of_distances', 'tabulate_sobolev']",
        "['products_of_columns', 'tabulate_sobolev']",
        "['gather_factor']",
    ]


@pytest.mark.nightly
def test_kernels_bring_no_strings_and_no_sort_with_them():
    """The message of a slice assignment, and NumPy's sort, take seconds to compile."""
    found = run(LISTENING + """
        import numpy as np
        from thinformer import attention, compress_cache, kernels, thin, two_sample_test

        qkv = np.random.default_rng(0).random((3, 1, 64, 1, 8))
        for options in ({}, {"correction": "nystrom"}, {"correction": "queries"},
                        {"temperature": "auto"}):
            attention(*qkv, size=8, rng=0, **options)
        compress_cache(*qkv, size=48)
        x = qkv[0, 0, :, 0]
        for method in ("kh-compress", "kernel-thinning", "compress++", "greedy"):
            thin(x, 8, method=method, rng=0)
        thin(x, 8, kernel=kernels.stein(-x), rng=0)
        for method in ("exact", "landmarks", "compress"):
            two_sample_test(x, x[::-1], method=method, rng=0)
        modules = {function.__module__ for function in functions}
        print("thinformer.cpu.rows" in modules,
              modules & {"numba.cpython.unicode", "numba.misc.quicksort"})
    """, THINFORMER_CACHE="0", **FAST)  # fmt: skip
    assert found == "True set()"


def test_python_cannot_call_what_only_kernels_call():
    for function in (rows.copy_row, rows.add):
        with pytest.raises(TypeError):
            function(np.zeros(2), np.ones(2))
