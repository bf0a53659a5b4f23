"""What the commands print: errors, times, and checks of an installation.

- `demo`: attention of three trained encoders; `quality`: error and time of every method, beside
  `attention_peers`, on `activations`; `equal_time`: their errors at the same time.
- `speed`, `speed_cuda`: time of attention on the CPU and on a GPU; `points`: of point sets;
  `models`: of whole encoders.
- `cache_quality`, `cache_facts`, `cache_speed`: decoders with a `ThinnedCache`, beside
  `cache_peers`.
- `tune`: settings for each layer of a model; `validate`: an installation against recorded results.
"""
