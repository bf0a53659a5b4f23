"""The benchmark's arithmetic and files; its figures are nobody's assertion."""

import json

import numpy as np
import pytest
from checkout import ROOT

from thinformer import compress_kv, compress_schedule
from thinformer.commands.main import main
from thinformer.cpu import halve
from thinformer.halving.plan import plan
from thinformer.measuring import speed

TINY = (1, 40, 300, 2, 8, 4)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(speed.SHAPES, "t2t", TINY)
    monkeypatch.setattr(speed, "_matrix_product", lambda dtype: 100.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_result(tiny, dtype):
    result = speed.run("t2t", dtype, g=1, rounds=3)
    assert (result.dims, result.kept, result.dtype) == (TINY, 32, dtype)
    assert {speed.EXACT, speed.KEPT, speed.SELECT, speed.WHOLE, speed.EAGER} <= set(result.seconds)
    for name, seconds in result.seconds.items():
        low, high = result.spread[name]
        assert 0 < low <= seconds <= high
    ratios = result.ratios
    assert ratios["exact / Thinformer"] == result.seconds[speed.EXACT] / result.seconds[speed.WHOLE]
    assert ratios["plain torch / selection"] > 0
    for name, whole in (("exact attention", speed.EXACT), ("Thinformer", speed.WHOLE),
                        (speed.QUERIES, speed.QUERIES)):  # fmt: skip
        peaked = result.seconds[f"{name}, peaked"]
        assert ratios[f"{name}, peaked / not"] == peaked / result.seconds[whole]
    text = speed.format_result(result)
    assert "32 keys kept" in text
    assert f"% of a matrix product's {result.ceiling:.0f}" in text


def test_no_figure_without_the_right_answer(tiny, monkeypatch):
    wrong = np.arange(150).reshape(1, 2, 75)
    with monkeypatch.context() as patch:
        patch.setattr(speed, "compress_kv", lambda *args, **kwargs: wrong)
        with pytest.raises(RuntimeError, match="the selection differs from plain torch's"):
            speed.run("t2t", g=1, rounds=1)

    def with_other_keys(*arrays, **options):
        return bench_attention(*arrays, **options)._replace(indices=wrong)

    bench_attention = speed.attention
    monkeypatch.setattr(speed, "attention", with_other_keys)
    with pytest.raises(RuntimeError, match="attention differs from SDPA over the same keys"):
        speed.run("t2t", g=1, rounds=1)


def test_operations_are_half_of_each_gram_matrix():
    schedule = compress_schedule(1024, 128)  # 3 rounds of 4 n_out^2 entries each
    assert speed.kernel_flops(schedule, 64 + 64) == 3 * 4 * 128**2 / 2 * 2 * 128


def test_kernel_values_computed_grow_as_the_schedule_says(monkeypatch):
    """A regression check by counts: rows handed to the kernel, round by round, and no others."""
    counted = []
    real = halve.halve_buckets

    def counting(first, last, first_point, last_point, problem, round_, *rest):
        assert (first_point, last_point) == (0, round_.largest_bucket)
        counted.append((last - first) * round_.largest_bucket**2)
        return real(first, last, first_point, last_point, problem, round_, *rest)

    monkeypatch.setattr(halve, "halve_buckets", counting)
    rng = np.random.default_rng(0)
    for S in (1024, 4096):
        counted.clear()
        key = rng.standard_normal((1, S, 3, 4))
        compress_kv(key, key, g=1, rng=0)
        rounds = plan(S, 1, None, 0.5).schedule.rounds
        n_out = 2 * int(np.sqrt(S))
        assert sum(counted) == 3 * len(rounds) * 4 * n_out**2


def test_files(tiny, tmp_path):
    results = [speed.run("t2t", g=1, rounds=1)]
    speed.save(results, speed.machine_with_torch(), tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["machine"]["numpy"] == np.__version__
    assert figures["results"][0]["seconds"] == results[0].seconds
    assert figures["results"][0]["ratios"] == results[0].ratios
    speed.plot(results, tmp_path / "figures.png")
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG")


def test_stored_figures_are_what_the_page_quotes():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    folder = ROOT / "docs" / "benchmarks"
    stored, compiled = (
        json.loads((folder / name).read_text())["results"]
        for name in ("cpu.json", "cpu_compiled.json")
    )
    of_compiled = {result["shape"]: result["ratios"] for result in compiled}
    columns = ("exact / Thinformer", "exact / Thinformer with weights",
               "exact / Thinformer on NumPy", "plain torch / selection")  # fmt: skip
    assert len(stored) == 5
    for result in stored:
        name, dims = speed.NAMES[result["shape"]], tuple(result["dims"])
        figures = [f"{result['ratios'][column]:.1f}" for column in columns]
        ratios = of_compiled.get(result["shape"])
        figures.append(f"{ratios['compiled torch / selection']:.1f}" if ratios else "-")
        cells = [name, str(dims), str(result["kept"]), *figures]
        assert f"| {' | '.join(cells)} |" in page.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--shapes", "5k"],
            "--shapes must be one of 't2t', 'biggan', '4k', '16k', '64k', 't2t-b64', '64k-h16'",
        ),
        (["--rounds", "0"], "--rounds must be an integer of at least 1; got 0"),
        (["--g", "-1"], "--g must be an integer of at least 0; got -1"),
        (["--threads", "0"], "--threads must be an integer of at least 1; got 0"),
        (["--json", "/nowhere/x.json"], "there is no folder /nowhere"),
        (["--plot", "x.txt"], "--plot takes a file ending in .png"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
