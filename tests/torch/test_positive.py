"""`solve_positive`, in a process whose number of threads was set."""

import subprocess
import sys

CHECK = """
import torch
from thinformer.torch import thinformer_attention
from thinformer.torch.attend.positive import solve_positive

torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)
for dtype, tolerance in ((torch.float32, 1e-3), (torch.float64, 1e-10)):
    for rows in (1, 77, 288):
        A = torch.randn(2, 3, rows, rows, dtype=dtype, generator=generator)
        A = A @ A.mT / rows + torch.eye(rows, dtype=dtype)
        b = torch.randn(2, 3, rows, 65, dtype=dtype, generator=generator)
        torch.testing.assert_close(A @ solve_positive(A, b), b, rtol=tolerance, atol=tolerance)
q, k, v = torch.randn(3, 1, 512, 3, 16, dtype=torch.float64, generator=generator)
seeded = {"size": 64, "correction": "queries"}
first = thinformer_attention(q, k, v, **seeded, generator=torch.Generator().manual_seed(0))
k.requires_grad_()
second = thinformer_attention(q, k, v, **seeded, generator=torch.Generator().manual_seed(0))
second[0].sum().backward()
assert k.grad.isfinite().all() and k.grad.abs().max() > 0
torch.testing.assert_close(first[0], second[0].detach(), rtol=1e-5, atol=1e-5)
"""


def test_after_set_num_threads():
    """torch.linalg.solve raises there, on some machines."""
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
