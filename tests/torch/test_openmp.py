"""Work on torch's threads, and in the workers of its loaders."""

import os
import subprocess
import sys

import pytest
from processes import PROBLEM, run

pytestmark = pytest.mark.slow


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

MANY_THREADS_AT_ONCE = """
from concurrent.futures import ThreadPoolExecutor
from thinformer.torch.choose.openmp import team
assert team() is not None
expected = [work(seed) for seed in range(8)]
with ThreadPoolExecutor(8) as pool:
    for _ in range(3):
        for got, want in zip(pool.map(work, range(8)), expected, strict=True):
            assert torch.equal(got, want)
"""

# an error reaches the caller, and the next call works
ERRORS = """
from thinformer.support import threads
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
"""

# no library's number of threads is changed, not even for the time of a call
NUMBERS_OF_THREADS = """
from scipy.linalg import blas
arrays = key.numpy(), value.numpy()
torch.set_num_threads(1)
expected = thinformer.compress_kv(*arrays, g=2, rng=0)
assert torch.get_num_threads() == 1
torch.set_num_threads(2)
assert np.array_equal(thinformer.compress_kv(*arrays, g=2, rng=0), expected)
assert torch.get_num_threads() == 2
"""


def test_on_torchs_threads():
    """Checks in one process, as it takes seconds to import torch."""
    run(TORCH_PROBLEM + MANY_THREADS_AT_ONCE + ERRORS + NUMBERS_OF_THREADS)


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
