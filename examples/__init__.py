"""The paper's experiments, to be run from the root of the checkout; not part of the package."""
