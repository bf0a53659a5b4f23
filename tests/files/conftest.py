"""Set-up for the tests of files."""

import pytest

from thinformer.files import job


@pytest.fixture
def small(monkeypatch):
    """Chunks may have as few rows as a test wants."""
    monkeypatch.setattr(job, "LEAST", 1)
