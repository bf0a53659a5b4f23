"""`ThinnedCache`: a KV cache of transformers that keeps few keys of a long text."""

from thinformer.torch.cache.thinned import CacheReport, CacheRow, ThinnedCache

__all__ = ["CacheReport", "CacheRow", "ThinnedCache"]
