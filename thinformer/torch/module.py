"""`ThinformerAttention`, with the interface of the published torch module."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from thinformer import _checks
from thinformer.attention import check_shapes, softmax_scale
from thinformer.compress import PRE_THIN
from thinformer.torch.op import COMPUTED_IN, select


class ThinformerAttention(nn.Module):
    r"""Softmax attention over the few keys and values that represent all of them.

    Thinformer, Algorithm 1 of *Low-Rank Thinning* (arXiv 2502.12063). Every forward pass chooses
    :math:`n_{out} = 2^g \sqrt n` keys of every head of every sequence, n the largest power of
    four not above S, and lets all queries attend to those. Where S <= n_out nothing is thinned and
    the result is exact attention.

    It is unmasked attention: there is no causal or padding mask, and no parameter to train.

    Parameters
    ----------
    g : int
        Oversampling. The error falls as :math:`2^{-g}`, the time to choose grows as :math:`4^g`.
    scale : float, optional
        Softmax scale, positive; 1 / sqrt(E) by default.
    use_torch_spda : bool
        Attend with ``torch.nn.functional.scaled_dot_product_attention``: faster and in less
        memory, but it returns no weights. (The name is the published module's.)
    size : int, optional
        The number of keys to keep, instead of the one that g gives, chosen from as many as halve
        evenly to it.
    pre_thin : {"even", "stride"}
        How a sequence is brought to a length that halves evenly: by one token at random from each
        of equal strata, or by the published rule, every s-th token for s = S // n.
    generator : torch.Generator, optional
        Where each forward pass takes its seed from; torch's default generator of the tensors'
        device if None, so ``torch.manual_seed`` reproduces a result. One of the CPU draws the same
        for tensors on a GPU as for tensors on the CPU.

    Shape
    -----
    query (B, T, H, E), key (B, S, H, E), value (B, S, H, D) of one floating dtype, on the CPU or
    one CUDA device -> (output (B, T, H, D), weights (B, H, T, n_out) or None). Weights belong to
    the kept keys, in the order of the sequence.

    Notes
    -----
    Gradients flow to the queries and to the keys and values kept; the choice itself is not
    differentiated. It is made in float32 for float16 and bfloat16. Where a head of a sequence has
    NaN or infinity among its keys or values, its output and weights are NaN, and no other's are.

    CUDA tensors take ``thinformer[cuda13]`` or ``[cuda12]``. The work is put on torch's current
    stream, and the CPU does not wait for it. The first call compiles; one after it, of the same
    shapes, can be captured by ``torch.cuda.graph``.

    Raises
    ------
    TypeError, ValueError
        Arguments that do not fit.
    NotImplementedError
        Tensors of another device.
    RuntimeError
        CUDA tensors without what they take; says what to install.

    Examples
    --------
    >>> import torch
    >>> from thinformer import ThinformerAttention
    >>> query, key, value = torch.randn(3, 1, 1024, 2, 16).unbind()
    >>> output, weights = ThinformerAttention(g=1)(query, key, value)
    >>> output.shape, weights.shape
    (torch.Size([1, 1024, 2, 16]), torch.Size([1, 2, 1024, 64]))
    """

    def __init__(
        self,
        g: int = 2,
        scale: float | None = None,
        use_torch_spda: bool = False,
        *,
        size: int | None = None,
        pre_thin: str = "even",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.g = _checks.integer("g", g, 0)
        self.scale = None if scale is None else _checks.positive("scale", scale)
        self.use_torch_spda = use_torch_spda
        self.size = None if size is None else _checks.integer("size", size, 1)
        self.pre_thin = _checks.choice("pre_thin", pre_thin, PRE_THIN)
        if not isinstance(generator, torch.Generator | None):
            raise TypeError(f"generator must be a torch.Generator or None; got {generator!r}")
        self.generator = generator

    def extra_repr(self) -> str:
        """Say how the module was made."""
        return (
            f"g={self.g}, scale={self.scale}, use_torch_spda={self.use_torch_spda}, "
            f"size={self.size}, pre_thin={self.pre_thin!r}"
        )

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend: see the class."""
        _check(query, key, value)
        indices, finite = select(
            key, value, g=self.g, size=self.size, scale=self.scale, pre_thin=self.pre_thin,
            generator=self.generator,
        )  # fmt: skip
        key, value = _gather(key, indices), _gather(value, indices)
        if key.is_cuda or not finite.all():  # asking a GPU would be waiting for it
            affected = ~finite[:, :, None, None]
            key, value = (kept.masked_fill(affected, float("nan")) for kept in (key, value))
        query = query.transpose(1, 2)
        scale = softmax_scale(self.scale, query.shape[-1])
        weights = None
        if self.use_torch_spda:
            output = scaled_dot_product_attention(query, key, value, scale=scale)
        else:
            # half precision would round logits to a few hundredths; autocast would bring it back
            wide = COMPUTED_IN[value.dtype]
            with torch.autocast(query.device.type, enabled=False):
                weights = torch.softmax(query.to(wide) @ (key.to(wide) * scale).mT, dim=-1)
                output = (weights @ value.to(wide)).to(value.dtype)
            weights = weights.to(value.dtype)
        return output.transpose(1, 2), weights


def _gather(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Tokens (B, S, H, dim) at positions (B, H, n_out), as (B, H, n_out, dim)."""
    rows = indices[..., None].expand(-1, -1, -1, tokens.shape[-1])
    return tokens.transpose(1, 2).gather(2, rows)


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Check that three tensors make an attention that can be computed here."""
    tensors = {"query": query, "key": key, "value": value}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor; got {type(tensor).__name__}")
        if tensor.dtype not in COMPUTED_IN:
            raise TypeError(
                f"{name} must be float16, bfloat16, float32 or float64; got dtype {tensor.dtype}"
            )
    devices = {name: str(tensor.device) for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        got = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"query, key, value must be on one device; got {got}")
    if query.device.type not in ("cpu", "cuda"):
        raise NotImplementedError(
            f"query is on device {query.device}; ThinformerAttention takes tensors on the CPU, "
            f"where .cpu() moves them, or on a CUDA device"
        )
    _checks.one_dtype(**{name: tensor.dtype for name, tensor in tensors.items()})
    check_shapes(tuple(key.shape), tuple(value.shape), tuple(query.shape))
