"""From tensors to the indices of the keys to keep; nothing here is differentiable."""

from __future__ import annotations

import torch
from numpy.typing import NDArray

from thinformer import _pool
from thinformer.attention import select as select_arrays
from thinformer.attention import softmax_scale
from thinformer.compress import plan
from thinformer.draws import seed_from
from thinformer.torch.openmp import team

# what the bodies compute in; half precision is too coarse for the running sums
COMPUTED_IN = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


@torch.compiler.disable
def select(
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    g: int,
    size: int | None,
    scale: float | None,
    pre_thin: str,
    generator: torch.Generator | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return positions (B, H, n_out) int64 of the keys kept, and which heads (B, H) are finite.

    The tensors are read in place, but for half precision on the CPU. The results are on their
    device; nothing waits for a GPU.
    """
    if key.is_cuda:
        from thinformer.cuda._numba import check_available  # imports numba.cuda

        check_available(f"a tensor on {key.device}")
        from thinformer.torch.cuda import select as select_on_gpu

        settings = plan(key.shape[1], g, size, 0.5, pre_thin)
        scale = softmax_scale(scale, key.shape[-1])
        return select_on_gpu(key, value, settings=settings, scale=scale, generator=generator)
    seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_(generator=generator))
    arrays = (_array(key), _array(value))
    with _pool.on(team()):
        indices, finite = select_arrays(
            *arrays,
            g=g,
            size=size,
            scale=scale,
            delta=0.5,
            pre_thin=pre_thin,
            draws=seed_from(seed),
        )
    return torch.from_numpy(indices), torch.from_numpy(finite)


def _array(tensor: torch.Tensor) -> NDArray:
    """A NumPy view of a tensor's memory; a copy for half precision."""
    tensor = tensor.detach().to(COMPUTED_IN[tensor.dtype])
    return tensor.resolve_conj().resolve_neg().numpy()
