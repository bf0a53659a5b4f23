"""The order of training examples: thinned, shuffled each epoch, shuffled once."""
