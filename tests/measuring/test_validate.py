import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

import thinformer
from thinformer.data import load_vectors
from thinformer.kernels.catalogue import KERNELS
from thinformer.measuring import validate


@pytest.mark.slow
def test_all_pass():
    rows = validate.validate()
    assert [row.failed for row in rows] == [[]] * len(rows)
    assert {row.checked for row in rows} == {
        "published halving", "published attention", "points", "integer points",
        "activations, text", "activations, vision", "activations, audio", "thin",
        "torch module = NumPy function",
    }  # fmt: skip


def test_no_recorded_case_is_near_a_tie():
    """But for repeated points, whose ties are exact."""
    for case, _ in load_vectors():
        if case["family"] != "published halving":
            assert case["margin"] > 5 * validate.TOLERANCE[case["dtype"]]


def faulty_copy(folder, file, right, wrong):
    """A copy of the package with one fault in it; returns the environment to run it in."""
    copy = folder / "thinformer"
    shutil.copytree(
        Path(thinformer.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__")
    )
    source = (copy / file).read_text()
    assert source.count(right) == 1
    (copy / file).write_text(source.replace(right, wrong))
    own = {"NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONSAFEPATH": ""}
    return {"cwd": folder, "env": os.environ | own}


@pytest.mark.slow
@pytest.mark.nightly
def test_the_command_fails_on_a_fault(tmp_path):
    """It says so and exits with 1."""
    options = faulty_copy(tmp_path, "halving/steps.py", "a <= alpha", "a > alpha")
    result = subprocess.run(
        [sys.executable, "-m", "thinformer", "validate"], capture_output=True, text=True,
        timeout=300, check=False, **options,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    for family in ("activations, text", "points", "thin"):
        assert f"FAIL  {family}" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "right", "wrong", "family"),
    [
        ("cpu/halve.py", "(sums[x] + first * (a[x] - b[x]))", "(sums[x] - first * (a[x] - b[x]))",
         "activations, text"),
        *(pytest.param(*fault, marks=pytest.mark.nightly) for fault in (
            ("cpu/sums.py", "value < least", "value > least", "thin"),
            ("cpu/halve.py", "state = max(state, b)", "state = b", "activations, text"),
            ("halving/steps.py", "b * sqrt(variance) * factor", "b * variance * factor", "thin"),
            ("halving/draws.py", "0xBF58476D1CE4E5B9", "0xBF58476D1CE4E5B7", "points"),
        )),
    ],
)  # fmt: skip
def test_a_fault_is_found(file, right, wrong, family, tmp_path):
    """By the cases of its family in float64, which alone are computed."""
    options = faulty_copy(tmp_path, file, right, wrong)
    script = f"""
from thinformer.measuring import validate
from thinformer.data import load_vectors
assert validate.__file__.startswith({str(tmp_path)!r})
agree = [validate._agrees(case, fields) for case, fields in load_vectors()
         if case["family"] == {family!r} and case["dtype"] == "float64"]
print(len(agree), sum(agree))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False,
        **options,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    cases, agreeing = map(int, result.stdout.split())
    assert cases >= 3
    assert agreeing < cases


UPSTREAM = """
import math, sys
import torch
from torch import nn
sys.path.insert(0, {root!r})
from reference import torch_version

class ThinformerAttention(nn.Module):
    # draws as the published module does: for every round a uniform_ and one bernoulli_
    def __init__(self, g):
        super().__init__()
        self.g = g

    def forward(self, query, key, value):
        from thinformer import Draws
        from thinformer.halving.plan import plan
        B, S, H, E = key.shape
        schedule = plan(S, self.g, None, 0.5, "stride").schedule
        uniforms, coins = [], []
        for pairs, buckets, delta in schedule.rounds:
            bound = 0.5 + math.log(4 * (pairs // buckets) / delta)
            u = torch.empty(B, buckets, H, pairs // buckets).uniform_(-bound, bound) / bound
            uniforms.append(u.transpose(1, 2).reshape(B, H, pairs).double())
            coins.append(torch.empty(1, dtype=torch.bool).bernoulli_().expand(buckets))
        draws = Draws(tuple(uniforms), tuple(coins))
        scale = {scale} * E**-0.5
        return torch_version.thinformer_attention(query, key, value, scale, schedule, draws)[:2]
"""


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "agrees"), [(1, True), (1.5, False)])
def test_upstream(scale, agrees, tmp_path):
    """Against a stand-in for the published module that is right, and one that is not."""
    (tmp_path / "thinformer").mkdir()
    source = UPSTREAM.format(root=str(ROOT), scale=scale)
    (tmp_path / "thinformer" / "thinformer.py").write_text(source)
    rows = validate.validate_upstream(tmp_path)
    assert len(rows) == 4
    assert [not row.failed for row in rows] == [agrees] * 4


@pytest.mark.slow
@pytest.mark.nightly
def test_specification_live():
    """``python -m reference.validate``, briefly."""
    result = subprocess.run(
        [sys.executable, "-m", "reference.validate", "4"], cwd=ROOT, capture_output=True,
        text=True, timeout=300, check=False, env=os.environ | {"PYTHONSAFEPATH": ""},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    n = 2 * (len(KERNELS) + 2)
    assert result.stdout.splitlines()[-1] == f"PASS: {n} of {n} rows agree"


@pytest.mark.slow
def test_recorded_vectors_are_what_the_script_records(tmp_path):
    """Recording again gives the same: the file was not edited, the specification not changed."""
    script = ROOT / "tests" / "data" / "record_vectors.py"
    result = subprocess.run(
        [sys.executable, script, tmp_path / "vectors.npz"], capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    recorded = load_vectors()
    again = load_vectors(tmp_path / "vectors.npz")
    assert len(again) == len(recorded)
    for (case, fields), (case_again, fields_again) in zip(recorded, again, strict=True):
        assert case.pop("margin") == pytest.approx(case_again.pop("margin"), rel=0.01, abs=1e-9)
        assert case == case_again
        for name, array in fields.items():
            assert (array == fields_again[name]).all()
