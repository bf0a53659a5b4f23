"""The versions of packages, of this one too where it runs from a checkout."""

from __future__ import annotations

import configparser
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def version(package: str) -> str:
    """Return the version of a package.

    Where thinformer is not installed, its version is that of the checkout that it runs from.

    Raises
    ------
    importlib.metadata.PackageNotFoundError
        The package is not installed.
    """
    try:
        return installed(package)
    except PackageNotFoundError:
        found = configparser.ConfigParser()
        found.read(CHECKOUT / "setup.cfg", encoding="utf-8")  # nothing where there is no such file
        if package != "thinformer" or found.get("metadata", "name", fallback=None) != package:
            raise
        return found.get("metadata", "version")
