"""Programs that some tests need and that pip does not install; .ci/run says which are absent."""

import shutil

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def program(*names):
    """Where the first of some programs is that is installed; a skipped test without any."""
    found = next(filter(None, map(shutil.which, names)), None)
    return found or pytest.skip(f"not installed: {' or '.join(names)}")
