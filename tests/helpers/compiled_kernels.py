"""The folder where Numba keeps machine code from one run of the tests to the next."""

import contextlib
import time

KEPT = 7 * 24 * 3600  # seconds


def remove_old(folder):
    """Machine code of sources that are gone is found by nobody; what is a week old is removed."""
    for path in folder.rglob("*.nb?"):  # an index, .nbi, or machine code, .nbc
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT:
                path.unlink()
