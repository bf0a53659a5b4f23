"""What a release has in it: files, addresses, version, licences."""

import email
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from checkout import ROOT

import thinformer
from thinformer.data import ACTIVATIONS

CITATION = (ROOT / "CITATION.cff").read_text()
NOTICE = (ROOT / "NOTICE").read_text()
PYPROJECT = (ROOT / "pyproject.toml").read_text()
ADDRESS = tomllib.loads(PYPROJECT)["tool"]["thinformer"]["repository"]


def egg_info(root, folder):
    """What setuptools writes of a project: its metadata, and the files of its sdist."""
    pytest.importorskip("setuptools", "77")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (written,) = folder.glob("*.egg-info")
    metadata = email.message_from_string((written / "PKG-INFO").read_text())
    return metadata, set((written / "SOURCES.txt").read_text().splitlines())


def project_files():
    """The files of the project: those that git tracks, or those that an sdist lists of itself."""
    if (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "ls-files", "-z"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        names = listed.split("\0")
    else:
        names = (ROOT / "thinformer.egg-info" / "SOURCES.txt").read_text().splitlines()
        names = [name for name in names if ".egg-info/" not in name]  # written anew
    return {name for name in names if name and (ROOT / name).exists()}


@pytest.fixture
def project(tmp_path):
    """What setuptools reads of the project besides the package."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_advice_to_install_names_packages_that_an_index_has():
    """Not extras of this package, which is on no index: who has a checkout says `.[files]`."""
    extras = (ROOT / "setup.cfg").read_text().split("[options.extras_require]")[1]
    of_extras = set(re.findall(r"^    ([a-z][\w-]*)", extras, re.MULTILINE))
    advised = []
    for path in sorted((ROOT / "thinformer").rglob("*.py")):
        text = path.read_text()
        assert f"{thinformer.__name__}[" not in text, path
        for line in re.findall(r"pip install (?!\{)([^\"\n]*)", text):
            names = re.findall(r"[a-z][\w-]+", re.sub(r"\[\w+\]|[<>=]+[\d.]+|, or", "", line))
            advised += [name for name in names if not line.startswith("--no-deps")]
    assert len(advised) > 10
    assert set(advised) <= of_extras | {"tabpfn"}


@pytest.mark.slow
def test_every_tracked_file_is_in_the_sdist(tmp_path):
    """So the tests run where it is unpacked."""
    tracked = project_files()
    assert len(tracked) > 300
    _, files = egg_info(ROOT, tmp_path)
    assert tracked - files == set()
    junk = ("__pycache__", ".ipynb_checkpoints", "docs/notebooks/")
    assert [name for name in files if any(part in name for part in junk)] == []


@pytest.mark.slow
def test_the_wheel_is_small_and_has_the_whole_package(tmp_path):
    """But for the recording whose model names no licence, and that of a decoder, for a notebook."""
    pytest.importorskip("setuptools", "77")
    folder = str(tmp_path)
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder, "build",
               "--build-base", folder, "bdist_wheel", "--dist-dir", folder]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 2_200_000
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if name.startswith("thinformer/")}
    tracked = {name for name in project_files() if name.startswith("thinformer/")}
    left_out = {f"thinformer/data/activations/{name}.npz" for name in ("decoder", "vision")}
    assert tracked - names == left_out
    assert names - tracked == set()


@pytest.mark.slow
def test_licences_are_in_the_metadata(project, tmp_path):
    """Files named there go into the wheel."""
    metadata, files = egg_info(project, tmp_path)
    assert metadata.get_all("License-File") == ["LICENSE", "NOTICE"]
    assert {"LICENSE", "NOTICE"} <= files


@pytest.mark.slow
def test_no_address_is_invented(project, tmp_path):
    """Without one there are no URLs, and the description is the README as it stands."""
    text = PYPROJECT.replace(f'repository = "{ADDRESS}"', 'repository = ""')
    (project / "pyproject.toml").write_text(text)
    metadata, _ = egg_info(project, tmp_path)
    assert metadata.get_all("Project-URL") is None
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()


@pytest.mark.slow
def test_one_address_makes_all_links(project, tmp_path):
    """Project URLs, and each relative link and image of the README."""
    address = "https://example.org/of/us"
    text = PYPROJECT.replace(f'repository = "{ADDRESS}"', f'repository = "{address}"')
    (project / "pyproject.toml").write_text(text)
    metadata, _ = egg_info(project, tmp_path)
    assert metadata.get_all("Project-URL") == [
        f"Source, {address}",
        f"Changelog, {address}/blob/HEAD/CHANGELOG.md",
        f"Issues, {address}/issues",
    ]
    links = r"\]\(([^)]+)\)"
    before = re.findall(links, (ROOT / "README.md").read_text())
    after = re.findall(links, metadata.get_payload())
    assert len(before) == len(after) > 15
    for old, new in zip(before, after, strict=True):
        kind = "raw" if old.endswith(".png") else "blob"
        outside = old.startswith(("http", "#"))
        assert new == (old if outside else f"{address}/{kind}/HEAD/{old}")


def test_the_citation_has_the_address_and_the_version():
    assert re.findall(r"^repository-code: (.*)$", CITATION, re.MULTILINE) == [ADDRESS] * bool(
        ADDRESS
    )
    assert re.findall(r"^version: (.*)$", CITATION, re.MULTILINE) == [thinformer.__version__]


def test_the_notice_names_all_bundled_data():
    """Each recording has its model and its input; the package has no other data files."""
    parts = re.split(r"^(\w+\.npz)$", NOTICE, flags=re.MULTILINE)
    names = [*ACTIVATIONS, "decoder"]
    assert parts[1::2] == [f"{name}.npz" for name in names]
    for part in parts[2::2]:
        assert re.search(r"^    model    .*^    input    ", part, re.MULTILINE | re.DOTALL)
    data = ROOT / "thinformer" / "data"
    files = {path.relative_to(ROOT).as_posix() for path in data.rglob("*.npz")}
    recordings = {f"thinformer/data/activations/{name}.npz" for name in names}
    assert files == {"thinformer/data/vectors.npz"} | recordings
    assert "thinformer/data/vectors.npz" in NOTICE
