"""Which keys of torch tensors to keep: operators of torch, and what runs them."""
