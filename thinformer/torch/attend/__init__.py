"""Attention of torch tensors to the selected keys.

- `arguments`: a call of attention, checked; `masks`, `ragged`: padding and nested tensors.
- `layer`: one layer's attention, its error estimate and its fallback.
- `few`: keys of equal weight; `landmarks`: keys with a correction.
- `estimate`: the error of an output, and exact attention.
"""
