"""x"""
from thinformer.dask.thinning import thin
__all__=["thin"]
