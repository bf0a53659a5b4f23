"""Set-up for the tests of attention in torch."""

import pytest
from tensors import sample_at_most


@pytest.fixture
def few_sampled_queries(monkeypatch):
    """Fewer than there are in small examples: outputs of sampled ones are exact."""
    sample_at_most(5, monkeypatch)
