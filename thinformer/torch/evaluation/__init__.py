"""Models of transformers with exact and with thinned attention: what `eval-model` measures.

- `encoders`: models and their inputs; `record`: what their layers attend to.
- `evaluate`: exact and thinned runs; `metrics`: how they are compared; `result`: the tables.
- `decoders`: causal language models, their caches and texts, for `measuring/cache_quality.py`.
- `shapes`: models with random weights, for `bench-models`.
"""
