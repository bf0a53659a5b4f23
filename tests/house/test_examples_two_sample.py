"""The example of two-sample tests: what it draws, and the shares that it prints."""

import re

import numpy as np
import pytest

from examples import two_sample
from thinformer import get_num_threads, set_num_threads, two_sample_test


@pytest.fixture(autouse=True)
def threads():
    before = get_num_threads()
    yield
    set_num_threads(before)


def test_samples():
    rng = np.random.default_rng(0)
    x, y = two_sample.POWER["normal, d = 10"][0](40_000, rng)
    np.testing.assert_allclose(y.mean(axis=0), [4.5 / 200] + [0] * 9, atol=0.02)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=0.02)
    x, y = two_sample.POWER["blobs"][0](40_000, rng)
    for each, ratio in ((x, 1.0), (y, 1.8)):
        apart = each - 10 * np.round(each / 10)
        near = apart[np.abs(apart).max(axis=1) < 4]
        found = np.linalg.eigvalsh(np.corrcoef(near.T))
        assert found[1] / found[0] == pytest.approx(ratio, rel=0.05)


def test_power(capsys):
    two_sample.main(["--points", "200", "--pairs", "4"])
    first, *others = capsys.readouterr().out.strip().split("\n\n")
    head, names, *lines = first.splitlines()
    assert head == "normal, d = 2: 4 pairs of 200 and 200 points"
    assert names.split() == ["power", "milliseconds"]
    found = {}
    for line in lines:
        way, share, milliseconds = re.split(r" {2,}", line.strip())
        assert float(milliseconds) > 0
        found[way] = float(share)
    draw = two_sample.POWER["normal, d = 2"][0]
    pairs = [(seed, *draw(200, np.random.default_rng(seed))) for seed in range(1, 5)]
    shares = [two_sample_test(x, y, standardize=False, rng=seed).reject for seed, x, y in pairs]
    assert found["default, 6 bandwidths"] == pytest.approx(np.mean(shares), abs=0.006)
    assert len(others) == 2


def test_level(capsys):
    two_sample.main(["--level", "--pairs", "4"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["default", "landmarks", "compress"]
    assert len(lines) == len(two_sample.LEVEL)
    draw = two_sample.LEVEL["blobs"]
    rngs = map(np.random.default_rng, range(4))
    shares = [two_sample_test(*draw(rng), permutations=199, rng=rng).reject for rng in rngs]
    assert float(lines[-1].split()[1]) == pytest.approx(np.mean(shares), abs=6e-5)
