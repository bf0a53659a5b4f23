"""The paper's experiments. They run from the root of a checkout and are no part of the package."""
