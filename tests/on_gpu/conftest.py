"""Set-up for the tests on a GPU; in Numba's simulator the same tests run small problems.

    tests/on_gpu/run.sh --only "test attention,test points"
    NUMBA_ENABLE_CUDASIM=1 python -m pytest -c tests/on_gpu/pytest.ini tests/on_gpu

Any other run without a GPU skips them and says so.
"""

import importlib.util
import os
import tempfile
from pathlib import Path

import pytest

# before Numba is imported; the checkout may be read-only
os.environ.setdefault("NUMBA_CACHE_DIR", tempfile.mkdtemp(prefix="thinformer-tests-"))

HERE = Path(__file__).parent
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"

if SIMULATED:
    # the same settings of the simulator as in its own tests
    spec = importlib.util.spec_from_file_location(
        "on_the_simulator", HERE.parent / "cuda_simulated" / "conftest.py"
    )
    on_the_simulator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(on_the_simulator)
    small_blocks = on_the_simulator.small_blocks
    arrays_on_the_simulator = on_the_simulator.arrays_on_the_simulator
    torch_on_the_simulator = on_the_simulator.torch_on_the_simulator

    @pytest.fixture(autouse=True)
    def in_place_of_a_gpu(arrays_on_the_simulator, torch_on_the_simulator, monkeypatch):
        """Arrays are read where they lie; tensors of the CPU reach the kernels."""
        import devices

        devices.tensors_to_kernels(monkeypatch)


def pytest_collection_modifyitems(items):
    from thinformer.cuda.jit import why_unavailable

    reason = why_unavailable()
    for item in items:
        if reason is not None and HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"tests/on_gpu/run.sh runs it: {reason}"))
