"""Stands in for torchvision, which timm imports and the attention tests have no use for.

Its wheels fit one build of torch each, and there is none for every build of the CPU.
"""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
import types


class _Anything(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Module(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


@contextlib.contextmanager
def torchvision():
    """Make timm importable, with torchvision if there is one that works."""
    try:
        importlib.import_module("torchvision")
    except Exception:
        _forget()
        finder = _Finder()
        sys.meta_path.insert(0, finder)
        try:
            yield
        finally:  # others look whether there is one
            sys.meta_path.remove(finder)
            _forget()
    else:
        yield


def _forget():
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
