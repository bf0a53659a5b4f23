"""The folder where Numba keeps machine code from one run of the tests to the next."""

import contextlib
import os
import time
from unittest.mock import patch

KEPT = 7 * 24 * 3600  # seconds


def remove_old(folder):
    """Machine code of sources that are gone is found by nobody; what is a week old is removed."""
    for path in folder.rglob("*.nb?"):  # an index, .nbi, or machine code, .nbc
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT:
                path.unlink()


@contextlib.contextmanager
def one_access_at_a_time():
    """Let one process at a time read or write Numba's cache.

    Numba writes the index of a function before the machine code that it names. Of two processes
    that store two signatures at the same time, both number their file 1: the index may then name
    the machine code of the other signature, for all later runs.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    from numba.core.caching import IndexDataCacheFile

    def locked(method):
        def call(self, *arguments):
            os.makedirs(self._cache_path, exist_ok=True)
            with open(os.path.join(self._cache_path, "lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                return method(self, *arguments)

        return call

    methods = {name: locked(getattr(IndexDataCacheFile, name)) for name in ("load", "save")}
    with patch.multiple(IndexDataCacheFile, **methods):
        yield
