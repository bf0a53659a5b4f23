"""torch.compile with the graphs counted."""

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters


def compiled(function, **options):
    """A function, or module, compiled whole, and the counter of its graphs (`frame_count`)."""
    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, fullgraph=True, backend=counter, **options), counter


def graph_breaks():
    """How many there were since."""
    return sum(counters["graph_break"].values())
