"""The argument `progress`: stages and fractions, bars, and calls that are ended by it."""

import contextlib
import io
import itertools
import sys
import types

import numpy as np
import pytest

import thinformer
from thinformer import (
    KernelThinner,
    compare,
    error_curve,
    mmd,
    mmd2_unbiased,
    set_num_threads,
    thin,
)
from thinformer.support import compiling, progress, threads
from thinformer.thinning import methods
from thinformer.thinning.streaming import merge_and_reduce

X = np.random.default_rng(0).normal(size=(256, 3))
SWAPS = [0.0, 0.125, 0.25, 1.0]  # two passes with changes, of eight; then one without
CALLS = {
    **{
        method: lambda method=method, **more: thin(X, 16, method=method, rng=0, **more)
        for method in methods.METHODS
    },
    "no swaps": lambda **more: thin(X, 16, g=1, refine=False, rng=0, **more),
    "weights": lambda **more: thin(X, 16, weights=np.arange(256), rng=0, **more),
    "one row": lambda **more: thin(X, 1, rng=0, **more),
    "all rows": lambda **more: thin(X, 256, rng=0, **more),
    "size auto": lambda **more: thin(X, "auto", ess=40, rng=0, **more),
    "error_curve": lambda **more: error_curve(X, [3, 9], **more).mmd,
    "mmd": lambda **more: mmd(X, np.arange(9), **more),
    "mmd2_unbiased": lambda **more: mmd2_unbiased(X, X[:99], **more),
    "compare": lambda **more: compare(X, {"few": np.arange(9)}, **more),
    "KernelThinner": lambda **more: (
        KernelThinner(9, random_state=0, **more).fit(X).coreset_indices_
    ),
    "merge_and_reduce": lambda **more: merge_and_reduce([X, X], 9, rng=0, **more).rows,
}


def recorded(call):
    """What a call tells: (stage, its fractions), in order."""
    told = []
    call(progress=lambda stage, fraction: told.append((stage, fraction)))
    by_stage = itertools.groupby(told, key=lambda each: each[0])
    return [(stage, [fraction for _, fraction in group]) for stage, group in by_stage]


def same(result, other):
    return np.array_equal(result, other) if isinstance(result, np.ndarray) else result == other


def test_stages_of_compress_plus_plus():
    set_num_threads(1)
    call = CALLS["compress++"]
    told = recorded(lambda **more: thin(X, 16, g=1, rng=0, **more))
    assert told == [
        ("halving", [0.0, 1.0]),
        ("KT-SPLIT", [0.0, 1.0]),
        ("mean embedding", [0.0, 1.0]),
        ("KT-SWAP", SWAPS),
    ]
    told = recorded(lambda **more: thin(X, 16, g=1, refine=False, rng=0, **more))
    assert told == [("halving", [0.0, 1.0]), ("KT-SPLIT", [0.0, 1.0])]
    # no tree for so few rows
    assert [stage for stage, _ in recorded(call)] == ["KT-SPLIT", "mean embedding", "KT-SWAP"]


def test_each_round_of_kt_split_is_half_the_work():
    set_num_threads(1)
    [(stage, fractions), *_] = recorded(CALLS["kernel-thinning"])
    assert stage == "KT-SPLIT"
    assert fractions == pytest.approx([0, 8 / 15, 12 / 15, 14 / 15, 1], abs=1e-15)
    assert fractions[-1] == 1.0


def test_pieces_of_a_bucket_are_told(monkeypatch):
    """The work of a piece grows as the points before it do; 64 of 256 points are kept."""
    monkeypatch.setattr(threads, "PIECE_FLOPS", 1.0)
    set_num_threads(1)
    [(stage, fractions)] = recorded(lambda **more: thin(X, 64, method="halving", rng=0, **more))
    assert stage == "halving"
    first = [0.8 * (i / 8) ** 2 for i in range(9)]  # panels of 32 points
    second = [0.8 + 0.2 * (i / 4) ** 2 for i in range(1, 5)]
    assert fractions == pytest.approx(first + second, abs=1e-15)


def test_blocks_are_stages_of_their_own(monkeypatch):
    monkeypatch.setattr(methods, "BLOCK", 64)
    told = recorded(lambda **more: thin(X, 32, g=2, rng=0, **more))
    stages = ["halving", "KT-SPLIT", "mean embedding", "KT-SWAP"]
    assert [stage for stage, _ in told] == [
        f"block {block} of 2: {stage}" for block in (1, 2) for stage in stages
    ]


def test_sizes_are_stages_of_their_own(monkeypatch):
    from thinformer.thinning import sizes

    stages = ["halving", "KT-SPLIT", "mean embedding", "KT-SWAP"]
    of_sizes = [f"{size} rows: {stage}" for size in (3, 9) for stage in stages]
    told = recorded(CALLS["error_curve"])
    assert [stage for stage, _ in told] == ["all points: MMD", *of_sizes]
    monkeypatch.setattr(sizes, "COMPARED", 100)
    told = recorded(CALLS["error_curve"])
    assert [stage for stage, _ in told] == ["all points: halving", "all points: MMD", *of_sizes]


def test_stages_of_errors(monkeypatch):
    set_num_threads(1)
    assert recorded(CALLS["mmd"]) == [("MMD", [0.0, 1.0])]
    assert recorded(CALLS["compare"]) == [("MMD", [0.0, 1.0]), ("energy distance", [0.0, 1.0])]
    [(stage, fractions)] = recorded(lambda **more: mmd2_unbiased(X, X[:64], **more))
    assert stage == "MMD"  # x and y, x, y: 2nm, n^2 and m^2 of (n + m)^2
    assert fractions == pytest.approx([0.0, 0.32, 0.96, 1.0], abs=1e-15)
    monkeypatch.setattr(threads, "PIECE_FLOPS", 1.0)
    [(_, fractions)] = recorded(CALLS["mmd"])
    assert fractions == [(i / 8) ** 2 for i in range(9)]  # a panel meets all panels before it


@pytest.mark.filterwarnings("ignore:kernel is plain Python")
def test_a_kernel_in_plain_python_is_the_first_stage():
    points = X[:4]
    for call in (
        lambda **more: thin(points, 2, kernel=lambda x, y: float(x @ y), rng=0, **more),
        lambda **more: mmd(points, [0], kernel=lambda x, y: float(x @ y), **more),
    ):
        assert recorded(call)[0] == ("kernel matrix", [0.0, 0.1, 0.3, 0.6, 1.0])


@pytest.mark.parametrize("piece", [1.0, 1e10])
@pytest.mark.parametrize("name", CALLS)
def test_fractions_rise_to_one_once_a_stage(name, piece, monkeypatch):
    monkeypatch.setattr(threads, "PIECE_FLOPS", piece)
    monkeypatch.setattr(threads, "THREAD_FLOPS", 1.0)
    set_num_threads(3)
    told = recorded(CALLS[name])
    assert len({stage for stage, _ in told}) == len(told)
    assert bool(told) == (name not in ("standard", "random", "all rows"))
    for _, fractions in told:
        assert all(type(fraction) is float for fraction in fractions)
        assert fractions[0] == 0.0
        assert fractions[-1] == 1.0
        assert fractions == sorted(set(fractions))


@pytest.mark.parametrize("name", CALLS)
def test_results_are_the_same(name, bars):
    want = CALLS[name]()
    for shown in (None, False, True, lambda stage, fraction: None):
        assert same(CALLS[name](progress=shown), want)


class Ended(BaseException):
    """Not an Exception, as KeyboardInterrupt is none."""


@pytest.mark.parametrize("name", ["compress++", "kernel-thinning", "halving", "mmd", "compare"])
def test_an_exception_ends_the_call(name, monkeypatch):
    """Whenever it comes, it is the one that was raised, and the next call is as ever."""
    monkeypatch.setattr(threads, "THREAD_FLOPS", 1.0)
    set_num_threads(2)
    want = CALLS[name]()
    for last in itertools.count():
        told = []

        def end(stage, fraction, told=told, last=last):
            told.append((stage, fraction))
            if len(told) > last:
                raise Ended(stage)

        with contextlib.suppress(Ended):
            CALLS[name](progress=end)
            break
        assert len(told) == last + 1
    assert last >= 2
    assert same(CALLS[name](), want)


@pytest.fixture
def bars(monkeypatch):
    """The bars of a stand-in for tqdm, each with what it showed."""
    made = []

    class Bar:
        def __init__(self, **options):
            self.options, self.n, self.closed, self.shown = options, 0.0, False, []
            made.append(self)

        def set_description_str(self, text, refresh=True):
            self.text = text

        def update(self, step):
            self.n += step
            self.shown.append((self.text, round(self.n, 12)))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.closed = True

    package, module = types.ModuleType("tqdm"), types.ModuleType("tqdm.auto")
    module.tqdm = Bar
    monkeypatch.setitem(sys.modules, "tqdm", package)
    monkeypatch.setitem(sys.modules, "tqdm.auto", module)
    return made


def test_true_is_a_bar_of_tqdm(bars):
    set_num_threads(1)
    thin(X, 16, g=1, rng=0, progress=True)
    [bar] = bars
    assert bar.shown == [
        ("halving", 0.0), ("halving", 1.0), ("KT-SPLIT", 0.0), ("KT-SPLIT", 1.0),
        ("mean embedding", 0.0), ("mean embedding", 1.0), *(("KT-SWAP", part) for part in SWAPS),
    ]  # fmt: skip
    assert bar.closed
    assert bar.options["total"] == 1.0


def test_the_bar_says_what_is_compiled_and_is_closed_after_an_error(bars):
    def run():
        with progress.showing(True) as tell:
            tell("halving", 0.5)
            compiling.begin()
            yield bars[0].text
            compiling.end()
            yield bars[0].text
            raise Ended

    texts = run()
    assert [next(texts), next(texts)] == ["compiling kernels (once)", "halving"]
    with pytest.raises(Ended):
        next(texts)
    assert bars[0].closed


def test_the_real_bar(monkeypatch):
    """tqdm's own, where it is installed."""
    pytest.importorskip("tqdm")
    piped = io.StringIO()
    monkeypatch.setattr(sys, "stderr", piped)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with progress.showing(True) as tell:
        tell("halving", 0.25)
        compiling.begin()
        compiling.end()
    assert "\rcompiling kernels (once)  25%|" in piped.getvalue()
    assert "\rhalving  25%|" in piped.getvalue()


def test_true_is_our_own_bar_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "PERIOD", 0.0001)

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.showing(True) as tell:
        tell("halving", 0.25)
        while "]  25 % halving" not in terminal.getvalue():
            pass
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_nothing_else_is_written(capfd):
    for name in CALLS:
        for shown in (None, False, lambda stage, fraction: None):
            CALLS[name](progress=shown)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("wrong", ["yes", 1, np.True_, 0.5])
def test_what_progress_takes(name, wrong):
    """Also where nothing would be told."""
    if name == "merge_and_reduce":
        return
    with pytest.raises(TypeError, match=r"progress must be None, True, False or a function of "):
        CALLS[name](progress=wrong)


def test_an_estimator_keeps_it():
    sklearn = pytest.importorskip("sklearn.base")
    estimator = KernelThinner(9, progress=True)
    assert sklearn.clone(estimator).progress is True
    assert thinformer.KernelThinner().progress is None
