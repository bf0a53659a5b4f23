"""Set-up for the tests of examples."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of three images of unlike sizes."""
    Image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("val")
    rng = np.random.default_rng(0)
    for name in ("n01", "n02", "n03"):
        (root / name).mkdir()
        for number, size in enumerate([(300, 260), (240, 320), (256, 256)]):
            pixels = rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.JPEG")
    return root
