"""Attention on NumPy arrays: which keys to keep, what they stand for, and the softmax over them."""
