"""Set-up for all tests: the specification, a cache of their own, memory that is never zero."""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# machine code of another version of the package must not be found
os.environ.setdefault("NUMBA_CACHE_DIR", tempfile.mkdtemp(prefix="thinformer-tests-"))

settings.register_profile("default", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("nightly", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def _load_reference() -> None:
    """Make ``reference`` importable from the checkout without its root on the path.

    With the root there, ``thinformer`` would be the folder beside the tests and not what is
    installed.
    """
    folder = ROOT / "reference"
    spec = importlib.util.spec_from_file_location(
        "reference", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["reference"] = module
    spec.loader.exec_module(module)


_load_reference()


@pytest.fixture
def fill_workspaces(monkeypatch):
    """A function that hands kernels memory full of a number from then on."""
    from thinformer.cpu import centring, halve, herd, landmarks, softmax, sums

    makers = [(body, body.workspace) for body in (centring, halve, herd, landmarks, softmax, sums)]

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
