"""Attention of torch tensors over the keys chosen: arguments, masks, softmax, error estimate."""
