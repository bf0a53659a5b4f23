"""The notebooks and what they read, as an archive: beside the package, no clone is needed."""

import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = "thinformer-notebooks"
# folders are as in a clone, so a notebook finds reference/ and the recordings in the same place.
# NOTICE says why vision.npz is not distributed with the package
PARTS = (
    "LICENSE",
    "NOTICE",
    "notebooks/*.ipynb",
    "notebooks/*.mplstyle",
    "notebooks/README.md",
    "reference/*.py",
    "reference/README.md",
    "thinformer/data/activations/README.md",
    "thinformer/data/activations/decoder.npz",
)
WHEN = (2026, 1, 1, 0, 0, 0)  # of every file in it, so that the same files give the same archive


def write(path):
    """Write the archive."""
    with zipfile.ZipFile(path, "w") as archive:
        for pattern in PARTS:
            found = sorted(ROOT.glob(pattern))
            if not found:
                raise FileNotFoundError(f"the archive of the notebooks lacks {pattern}")
            for file in found:
                entry = zipfile.ZipInfo(f"{NAME}/{file.relative_to(ROOT).as_posix()}", WHEN)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)


def beside_the_notebooks(app):
    """Write it where a page can offer it, in the folder that git ignores."""
    folder = Path(app.srcdir) / "notebooks"
    folder.mkdir(exist_ok=True)
    write(folder / f"{NAME}.zip")


def setup(app):
    """Write the archive before pages are read."""
    app.connect("builder-inited", beside_the_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
