"""Attention on NumPy arrays: which keys to keep, and the softmax over them.

- `attention`: the public function `compress_kv`, and what `thinformer.attention` does on the CPU.
- `options`: `KeySelection` and `LayerOptions`, the settings of attention; `settings`: their files.
- `thinned`, `herding`, `landmarks`: three ways to select keys.
- `softmax`: attention to the selected keys.
- `padding`: from a mask to positions; `arguments`: shapes, the scale, finite entries.
"""
