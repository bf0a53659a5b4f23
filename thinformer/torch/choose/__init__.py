"""Which keys of torch tensors to keep.

- `operators`: the selection as operators of torch; `calls`: their flat arguments from options.
- `on_cpu`, `on_gpu`, `herding_on_gpu`, `landmarks_on_gpu`: what an operator runs on each device.
- `padding_on_gpu`: from a mask on a GPU to sequences without padding.
- `heads`: the tensors of attention; `seeds`: random seeds; `openmp`: torch's own threads.
"""
