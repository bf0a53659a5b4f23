"""Set-up for all tests: the specification, the cache of kernels, memory that is never zero."""

import contextlib
import gc
import importlib
import os
import tempfile

import compiled_kernels
import numpy as np
import pytest
from checkout import ROOT, load
from hypothesis import settings

settings.register_profile("default", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("nightly", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# Threads of torch sleep until there is work. They would spin, on cores that other tests need. This
# is set before anything imports torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

for package in ("reference", "examples"):
    load(package)


def pytest_configure(config):
    """Choose what child processes inherit: folders of recordings and of machine code, BLAS threads.

    They import the installed package, not the folder that they run in, whose kernels nobody has
    compiled. xdist's workers have a core each: threads of BLAS would wait for each other. The wheel
    has not all recordings. The folder of machine code is set before Numba is imported. Names in it
    carry a hash of the sources, so one folder serves every run. An xdist worker finds the variables
    that the first process sets.
    """
    os.environ["THINFORMER_ACTIVATIONS"] = str(ROOT / "thinformer" / "data" / "activations")
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    if hasattr(config, "cache"):
        folder = config.cache.mkdir("numba")
        compiled_kernels.remove_old(folder)
    else:  # pytest -p no:cacheprovider
        folder = tempfile.mkdtemp(prefix="thinformer-tests-")
    os.environ["NUMBA_CACHE_DIR"] = str(folder)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give a worker all tests of a file, so that what they call is compiled once, not by each.

    Files of landmarks share the kernels that take longest, and stay together. A notebook has a
    process of its own, so these are apart. Files are taken in their order: the smallest ones, which
    xdist would take last, have the slowest tests.
    """
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            if file.endswith("test_notebooks.py"):
                return nodeid
            return "landmarks" if "/test_landmark" in file else file

    return ByFile(config, log)


def pytest_sessionstart():
    """Let one of two workers import other packages first.

    In a new environment Python compiles what is imported, and keeps it. Both workers would compile
    the same files at the same time.
    """
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw1":
        for package in "scipy.stats", "pandas", "polars", "sklearn", "distributed":
            with contextlib.suppress(ImportError):
                importlib.import_module(package)


def pytest_collection_finish():
    """Leave what was imported out of garbage collections: compiling took a sixth longer with it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Costly variants are slow too, so that ``-m "not slow"`` leaves them out."""
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def no_lines_of_progress():
    """Commands that tests run print none, however slow the machine is."""
    from thinformer.support import compiling, progress

    progress.BEFORE = 1e6
    compiling.PATIENCE = 1e6


@pytest.fixture
def fill_workspaces(monkeypatch):
    """A function that hands kernels memory full of a number from then on."""
    from thinformer.cpu import cache, causal, centring, halve, herd, landmarks, softmax, sums

    bodies = cache, causal, centring, halve, herd, landmarks, softmax, sums
    makers = [(body, body.workspace) for body in bodies]

    def fill(number):
        for body, make in makers:

            def workspace(*sizes, make=make):
                work = make(*sizes)
                work[:] = number
                return work

            monkeypatch.setattr(body, "workspace", workspace)

    return fill


@pytest.fixture(autouse=True)
def poisoned_workspaces(fill_workspaces):
    """Memory full of NaN, so that reading what was not written shows."""
    fill_workspaces(np.nan)


@pytest.fixture(autouse=True)
def default_threads():
    """Leave the number of threads as it was."""
    import thinformer

    yield
    thinformer.set_num_threads(None)
