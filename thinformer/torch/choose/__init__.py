"""Which keys of torch tensors to keep.

- `operators`: the selection as operators of torch; `calls`: their flat arguments from options.
- `on_cpu`, `on_gpu`, `landmarks_on_gpu`: what an operator runs on each device.
- `heads`: the tensors of attention; `seeds`: random seeds; `openmp`: torch's own threads.
"""
