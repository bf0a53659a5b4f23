"""Versions of what is installed, and of a checkout that is not."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

import pytest
from checkout import ROOT

import thinformer
from thinformer.commands.main import main
from thinformer.support import version as module


def test_the_version_of_a_checkout(monkeypatch, tmp_path, capsys):
    """It is read where installing would read it."""

    def nothing(package):
        raise PackageNotFoundError(package)

    expected = installed("thinformer")
    monkeypatch.setattr(module, "installed", nothing)
    monkeypatch.setattr(module, "CHECKOUT", ROOT)
    assert module.version("thinformer") == expected == thinformer.__version__
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"{expected}\n"
    with pytest.raises(PackageNotFoundError):
        module.version("numpy")
    monkeypatch.setattr(module, "CHECKOUT", tmp_path)
    with pytest.raises(PackageNotFoundError):
        module.version("thinformer")
    (tmp_path / "setup.cfg").write_text("[metadata]\nname = other\nversion = 7\n")
    with pytest.raises(PackageNotFoundError):
        module.version("thinformer")


def test_installed_packages():
    assert module.version("numpy") == installed("numpy")
