"""Set-up for the tests of files."""

import pytest

from thinformer.files import thin as thin_files


@pytest.fixture
def small(monkeypatch):
    """Chunks of as few rows as are asked for."""
    monkeypatch.setattr(thin_files, "LEAST", 1)
