"""The checkout that the tests are part of; its root is not on the path."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden"


def load(name):
    """Make a package beside `thinformer` importable without the root of the checkout on the path.

    With the root there, ``thinformer`` would be the folder beside the tests and not what is
    installed.
    """
    folder = ROOT / name
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
