"""The comparison with other packages: its samples, its lines, and what it does without them."""

import importlib.util
import json
import os
import sys
import types

import numpy as np
import pytest
from processes import run

from thinformer import mmd
from thinformer.commands.main import main
from thinformer.kernels import gaussian, stein
from thinformer.measuring import peers

FIRST_ROWS = """
import numpy as np
def thin(sample, gradient, n_points, standardize, preconditioner):
    assert sample.shape == gradient.shape and not standardize
    assert abs(float(preconditioner) - 2) < 1e-9
    return np.arange(n_points, dtype=np.uint32)
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A function that puts a stein_thinning of some code in the way of the installed packages.

    It holds for this process and its children; goodpoints and coreax are not there.
    """

    def make(code):
        package = tmp_path / "stein_thinning"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "thinning.py").write_text(code)
        metadata = tmp_path / "stein_thinning-0.2.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Name: stein_thinning\nVersion: 0.2.0\n")
        for name in [name for name in sys.modules if name.startswith("stein_thinning")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(tmp_path)
        there = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, there)))

    find_spec = importlib.util.find_spec
    missing = ("goodpoints", "coreax", "jax")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name)
    )
    yield make
    sys.modules.pop("stein_thinning.thinning", None)
    sys.modules.pop("stein_thinning", None)


def test_scores_are_the_gradient_of_the_log_density():
    points = peers.chains(50, 0)

    def log_density(at):
        return np.log(np.exp(-0.5 * ((at[:, None] - peers.CENTRES) ** 2).sum(-1)).sum(-1))

    for j, step in enumerate(1e-5 * np.eye(2)):
        slope = (log_density(points + step) - log_density(points - step)) / 2e-5
        np.testing.assert_allclose(peers.scores(points)[:, j], slope, rtol=1e-6, atol=1e-8)
    far = np.array([[1e4, 0.0]])  # where the density is 0 in floating point
    np.testing.assert_allclose(peers.scores(far), [[3 - 1e4, 0]], atol=1e-9)


def test_chains_reach_the_mixture():
    """Each variance of the mixture is 1 of a Gaussian and 9 / 2 of the circle."""
    drawn = peers.chains(64_000, 0).reshape(16, 4000, 2)
    assert np.abs(drawn[:, 0]).max() > 8  # the warm-up is there
    late = drawn[:, 1000:].reshape(-1, 2)
    np.testing.assert_allclose(late.mean(axis=0), 0, atol=0.15)
    np.testing.assert_allclose(late.var(axis=0), 5.5, rtol=0.05)
    assert peers.chains(50, 1).shape == (50, 2)
    np.testing.assert_array_equal(peers.chains(50, 1), peers.chains(50, 1))


@pytest.mark.parametrize("measure", peers.METHODS)
def test_rows_of_this_package(measure):
    """Their errors are below those of random rows, and are those of `mmd`."""
    rows = {
        method: peers.in_this_process(measure, method, 256, 2)["rows"][1]
        for method in ("thinformer, compress++", "thinformer, kernel-thinning", "random rows")
    }
    found = peers.errors(measure, 256, 1, rows)
    points, scores = peers.draw(measure, 256, 1)
    kernel = gaussian(2**0.5) if measure == "MMD" else stein(scores, 2**0.5)
    assert found == {x: pytest.approx(mmd(points, r, kernel=kernel)) for x, r in rows.items()}
    assert 2 * found["thinformer, compress++"] < found["random rows"]
    assert 2 * found["thinformer, kernel-thinning"] < found["random rows"]


def test_rows_of_stein_thinning(stub):
    stub(FIRST_ROWS)
    rows = peers.in_this_process("KSD", "stein_thinning", 64, 2)["rows"]
    assert rows == [list(range(8))] * 2
    points, scores = peers.draw("KSD", 64, 1)
    error = mmd(points, np.arange(8), kernel=stein(scores, 2**0.5))
    assert peers.errors("KSD", 64, 1, {"stein_thinning": rows[1]}) == {"stein_thinning": error}


def test_rows_of_coreax(monkeypatch):
    """A later sweep gets the coreset and the state of the one before, and the same bandwidth."""
    made = []

    class Solver:
        def __init__(self, size, kernel, **options):
            self.size, self.kernel, self.options = size, kernel, options
            made.append(self)

        def reduce(self, data):
            assert data.shape[1] == 2
            return types.SimpleNamespace(unweighted_indices=np.arange(self.size)), "kept"

        def refine(self, coreset, state):
            assert state == "kept"
            return types.SimpleNamespace(unweighted_indices=coreset.unweighted_indices + 1), state

    def module(name, **content):
        found = types.ModuleType(name)
        vars(found).update(content)
        monkeypatch.setitem(sys.modules, name, found)

    module("equinox", filter_jit=lambda function: function)
    module("jax", numpy=np)
    module("coreax", Data=lambda points: points)
    module("coreax.solvers", KernelHerding=Solver, SteinThinning=Solver)
    module("coreax.kernels", SquaredExponentialKernel=lambda length: length,
           PCIMQKernel=lambda length: length, SteinKernel=lambda *parts: parts)  # fmt: skip
    peers._step.cache_clear()
    try:
        points, scores = peers.draw("KSD", 64, 0)
        for measure, name, first in (
            ("MMD", "coreax, herding", 0),
            ("MMD", "coreax, herding, 8 sweeps", 7),
            ("KSD", "coreax, Stein thinning", 0),
            ("KSD", "coreax, Stein thinning, plain, 8 sweeps", 7),
        ):
            rows = peers.METHODS[measure][name](points, scores, 8, 0)
            assert rows.tolist() == list(range(first, first + 8))
    finally:
        peers._step.cache_clear()
    assert [solver.kernel for solver in made[:2]] == [2**0.5] * 2
    length, of_points = made[2].kernel
    assert length == pytest.approx(1)  # coreax has 1 + |x - y|^2 / (2 length^2)
    np.testing.assert_array_equal(of_points(points), scores)
    assert [solver.options["regularise"] for solver in made[2:]] == [True, False]


def test_what_does_not_run(stub, monkeypatch):
    assert peers.why_not("coreax, herding", 64) == "not installed"
    assert peers.why_not("goodpoints, compress++", 64) == "not installed"
    assert peers.why_not("thinformer, kernel-thinning", 10**6) == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there")
    assert peers.why_not("goodpoints, kernel thinning", 4**7) == ""
    assert peers.why_not("goodpoints, kernel thinning", 4**8) == "left out: a matrix of 32 GiB"
    assert peers.why_not("coreax, Stein thinning", 4**8) == "left out: a matrix of 16 GiB"
    assert peers.why_not("coreax, Stein thinning, plain", 4**8) == ""


def test_a_comparison(monkeypatch):
    """The time of the first call does not count, its rows do."""
    rows = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    done = {"rows": rows, "seconds": [9.0, 1.0, 3.0], "mebibytes": 7.0}
    names = ("one", "two", "three", "four")
    results = {"one": done, "three": "failed: no luck", "four": done | {"rows": [[0, 1]] * 3}}
    monkeypatch.setattr(peers, "METHODS", {"MMD": dict.fromkeys(names)})
    monkeypatch.setattr(peers, "why_not", lambda method, n: "away" if method == "two" else "")
    monkeypatch.setattr(peers, "in_child", lambda _, method, n, seeds: results[method])
    stages = []
    line, *others = peers.compared("MMD", 16, 3, lambda stage, fraction: stages.append(stage))
    expected = [
        mmd(peers.mixture(16, 1000 + seed), np.array(rows[seed]), kernel=gaussian(2**0.5))
        for seed in range(3)
    ]
    assert line == peers.Line("MMD", 16, 4, "one", pytest.approx(expected), 2.0, 7.0, "")
    notes = ["away", "failed: no luck", "left out: 2 rows in place of 4"]
    assert [other.note for other in others] == notes
    assert [other.errors for other in others] == [[], [], []]
    assert stages[:4] == [f"MMD, n = 16: {method}" for method in names]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells this memory")
def test_memory_is_the_peak_beyond_the_points():
    """In a process of its own, as methods are run: what else a process frees would count."""
    told = run("""
        import numpy as np
        from thinformer.measuring import peers

        def hungry(points, scores, size, seed):
            if len(points) > 256:
                np.ones(12_500_000)  # 95 MiB, given back
            return np.arange(size)

        np.ones(40_000_000)  # a peak of before, which must not count
        peers.METHODS["MMD"]["hungry"] = hungry
        print(peers.in_this_process("MMD", "hungry", 400, 2)["mebibytes"])
    """)
    assert float(told) == pytest.approx(95, abs=5)


def test_lines():
    line = peers.Line("MMD", 65536, 256, "coreax, herding", [0.1, 0.3], 12.345, 1234.5)
    cells = ["65,536", "256", "coreax, herding", "0.20000 ± 0.10000", "12.3", "1,234"]
    assert peers.cells(line) == cells
    assert len(peers.head("MMD")) == len(cells)
    assert peers.format_cells(cells) == (
        f" 65,536   256  {'coreax, herding':<41}0.20000 ± 0.10000        12.3   1,234"
    )
    line = peers.Line("MMD", 64, 8, "coreax, herding", note="not installed")
    assert peers.format_cells(peers.cells(line)) == (
        f"     64     8  {'coreax, herding':<41}not installed"
    )
    line = peers.Line("MMD", 64, 8, "stein_thinning", [0.1, 0.3], 0.0012, None)
    assert peers.cells(line)[-2:] == ["0.0012", "-"]
    assert (peers.seeds_for(4096), peers.seeds_for(65536)) == (10, 2)


@pytest.mark.slow
def test_a_peer_that_fails(stub):
    stub("def thin(*given, **options):\n    raise RuntimeError('no luck')\n")
    assert peers.in_child("KSD", "stein_thinning", 64, 2) == "failed: RuntimeError: no luck"


@pytest.mark.slow
def test_a_peer_that_ends_the_process(stub):
    stub("import os\ndef thin(*given, **options):\n    os._exit(3)\n")
    assert peers.in_child("KSD", "stein_thinning", 64, 2) == "failed: exit status 3"


@pytest.mark.slow
def test_a_peer_that_does_not_end(stub, monkeypatch):
    stub("import threading\ndef thin(*given, **options):\n    threading.Event().wait()\n")
    monkeypatch.setattr(peers, "LONGEST", 1)
    assert peers.in_child("KSD", "stein_thinning", 64, 2) == "left out: more than 1 s for 2 seeds"


@pytest.mark.slow
@pytest.mark.nightly
def test_command(stub, tmp_path, monkeypatch, capsys):
    stub(FIRST_ROWS)
    shown = {"MMD": ("coreax, RPCholesky", "evenly spaced rows"),
             "KSD": ("stein_thinning", "thinformer, compress++")}  # fmt: skip
    methods = {measure: {method: peers.METHODS[measure][method] for method in names}
               for measure, names in shown.items()}  # fmt: skip
    monkeypatch.setattr(peers, "METHODS", methods)
    path = tmp_path / "peers.json"
    arguments = ["--peers", "--sizes", "64", "--seeds", "2", "--json", str(path)]
    assert main(["bench-points", *arguments]) == 0
    stored, printed = json.loads(path.read_text()), capsys.readouterr().out
    assert stored["machine"]["stein_thinning"] == "0.2.0"
    assert "coreax" not in stored["machine"]
    for measure, names in shown.items():
        lines = [peers.Line(**line) for line in stored[measure]]
        assert tuple(line.method for line in lines) == names
        for line in lines:
            assert peers.format_cells(peers.cells(line)) in printed
    assert stored["MMD"][0]["note"] == "not installed"
    points, scores = peers.draw("KSD", 64, 0)
    error = mmd(points, np.arange(8), kernel=stein(scores, 2**0.5))
    assert stored["KSD"][0]["errors"][0] == error
    assert peers.NOTES in printed


def test_options_that_do_not_go_together(capsys):
    assert main(["bench-points", "--peers", "--largest", "6"]) == 2
    assert "--largest does not go with --peers" in capsys.readouterr().err
