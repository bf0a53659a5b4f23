"""Columns that are no data: left out of frames and posteriors as the command leaves them out."""

import json
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import xarray as xr
from files_of_points import run, succeed
from numba import njit  # noqa: TID251

from thinformer import (
    KernelThinner,
    compare,
    kernels,
    median_distance,
    mmd,
    mmd2_unbiased,
    take_draws,
    thin,
)

N = 120
X = np.random.default_rng(2).normal(size=(N, 3)) * [1, 5, 0.1]
ROWS = np.array([3, 40, 77, 110])
DATA = dict(zip("abc", X.T, strict=True))
COUNT = np.arange(N)
NOT_DATA = {
    "lp__": (-4000.0 - 50 * (X**2).sum(axis=1), "of a sampler"),
    "chain": (1 + COUNT // 30, "of a sampler"),
    ".iteration": (COUNT % 30, "of a sampler"),
    "Draw": (COUNT, "of a sampler"),
    "id": (1000 + COUNT, "an index"),
    "": (COUNT, "an index"),
    "k": (np.full(N, 7.5), "constant"),
    "flag": (np.zeros(N, bool), "constant"),
}
KINDS = {"pandas": pd.DataFrame, "polars": pl.DataFrame}
CALLS = {
    "thin": lambda x, **o: thin(x, 9, rng=0, **o).tolist(),
    "mmd": lambda x, **o: mmd(x, ROWS, **o),
    "compare": lambda x, **o: [*compare(x, {"few": ROWS}, **o)],
    "mmd2_unbiased": lambda x, **o: mmd2_unbiased(x[:50], x[50:], **o),
    "KernelThinner": lambda x, **o: (
        KernelThinner(9, random_state=0, **o).fit(x).coreset_indices_.tolist()
    ),
    "median_distance": lambda x: median_distance(x, rng=0),
}


def told(call, *arguments, **options):
    """The result of a call, and the text of its only warning."""
    with pytest.warns(UserWarning, match=": left out of the distance: ") as caught:
        result = call(*arguments, **options)
    (one,) = caught
    assert one.filename == __file__
    return result, str(one.message)


def quiet(call, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call(*arguments, **options)


def awkward(names):
    """Columns of data with others between them."""
    values = {name: NOT_DATA[name][0] for name in names}
    first, *others = DATA
    return {first: DATA[first], **values, **{name: DATA[name] for name in others}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NOT_DATA)
def test_each_reason(name, kind):
    frame = KINDS[kind](awkward([name]))
    rows, message = told(thin, frame, 9, rng=0)
    np.testing.assert_array_equal(rows, thin(pd.DataFrame(DATA), 9, rng=0))
    shown, reason = name or "''", NOT_DATA[name][1]
    assert message == (
        f"points: left out of the distance: {shown} ({reason}). An array has no names and counts "
        "all its columns: for a frame, frame[columns].to_numpy()"
    )


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_function(kind, call):
    """The result is that of the data alone, and one warning names all that is left out."""
    frame = KINDS[kind](awkward(NOT_DATA))
    expected = quiet(CALLS[call], KINDS[kind](DATA))
    result, message = told(CALLS[call], frame)
    assert result == expected
    assert (
        ": left out of the distance: lp__, chain, .iteration, Draw (of a sampler); "
        "id, '' (an index); k, flag (constant). An array" in message
    )
    quiet(CALLS[call], KINDS[kind](DATA))


def test_the_remedy_counts_them():
    frame = pd.DataFrame(awkward(["chain", "id", "k"]))
    columns = ["a", "chain", "id"]
    rows = quiet(thin, frame[columns].to_numpy(), 9, standardize="scale", rng=0)
    by_hand = np.column_stack([DATA["a"], NOT_DATA["chain"][0], NOT_DATA["id"][0]])
    np.testing.assert_array_equal(rows, thin(by_hand, 9, standardize="scale", rng=0))
    assert rows.tolist() != told(thin, frame, 9, rng=0)[0].tolist()


def test_what_only_looks_like_it():
    """A name alone is no index, and a column that varies in the last row is no constant."""
    late = np.zeros(N)
    late[-1] = 1
    other = {"id": COUNT[::-1], "row": COUNT + 0.5, "index": COUNT // 2, "k": late, "lp_": X[:, 0]}
    frame = pd.DataFrame(DATA | other)
    rows = quiet(thin, frame, 9, rng=0)
    np.testing.assert_array_equal(rows, thin(frame.to_numpy(), 9, standardize="scale", rng=0))
    equal = pd.DataFrame({"x": [1.0, 1.0], "y": [2.0, 2.0]})  # where all are constant, all stay
    assert quiet(mmd, equal, [0], bandwidth=1.0) == 0


def test_columns_that_are_left_out_need_not_be_numbers():
    names = {"chain": ["one"] * N, "lp__": [np.nan] * N}
    rows, message = told(thin, pd.DataFrame(DATA | names), 9, rng=0)
    np.testing.assert_array_equal(rows, thin(pd.DataFrame(DATA), 9, rng=0))
    assert "chain, lp__ (of a sampler)" in message
    few = pd.DataFrame({name: column.astype("f4") for name, column in DATA.items()})
    rows, _ = told(thin, few.assign(lp__=NOT_DATA["lp__"][0]), 9, rng=0)
    np.testing.assert_array_equal(rows, thin(few, 9, rng=0))  # and they change no dtype


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", ["thin", "mmd", "compare", "mmd2_unbiased", "median_distance"])
def test_frames_without_data(kind, call):
    columns = {"chain": NOT_DATA["chain"][0], "id": COUNT}
    with pytest.raises(
        ValueError,
        match=r"^(points|x) must have a column to compute with; left out of the distance: chain "
        r"\(of a sampler\); id \(an index\)\. An array has no names and counts all its columns$",
    ):
        CALLS[call](KINDS[kind](columns))
    with pytest.raises(ValueError, match=r"; left out of the distance: chain \(of a sampler\)\."):
        CALLS[call](KINDS[kind]({"chain": COUNT}))


@njit
def third(x, y):
    return np.exp(-((x[2] - y[2]) ** 2))


@pytest.mark.parametrize(
    "options",
    [{"bandwidth": [1.0, 2.0, 3.0, 4.0]}, {"kernel": kernels.gaussian([1.0, 2.0, 3.0, 4.0])},
     {"kernel": kernels.linear() + kernels.laplace([1.0, 2.0, 3.0, 4.0]), "method": "kh-compress"},
     {"kernel": third, "method": "kh-compress"},  # compiles the least
     pytest.param({"kernel": kernels.pairwise(third)}, marks=pytest.mark.nightly),
     {"kernel": kernels.stein(-np.insert(X, 1, 0, axis=1))},
     {"method": "standard"}, {"method": "random"}],
    ids=["bandwidths", "Kernel", "sum", "function", "pairwise", "stein", "standard", "random"],
)  # fmt: skip
def test_a_kernel_made_for_columns_takes_them_all(options):
    """So do methods that compute no distance."""
    frame = pd.DataFrame(awkward(["k"]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "points have columns on unlike scales")
        warnings.filterwarnings("error", ".* left out")
        rows = thin(frame, 9, rng=0, **options)
        np.testing.assert_array_equal(rows, thin(frame.to_numpy(), 9, rng=0, **options))
        of_frame = KernelThinner(9, random_state=0, **options).fit(frame).coreset_indices_
        np.testing.assert_array_equal(of_frame, rows)


def test_a_gram_matrix_keeps_its_columns():
    gram = np.eye(N)
    gram[:, 0] = gram[0] = 1.0
    frame = pd.DataFrame(gram, columns=["chain", *map(str, range(1, N))])
    rows = quiet(thin, frame, 5, kernel="precomputed", rng=0)
    np.testing.assert_array_equal(rows, thin(gram, 5, kernel="precomputed", rng=0))


# posteriors

SHAPE = (4, N // 4)


def dataset(**more):
    """Four chains of a number and a vector, and more variables."""
    variables = {
        "mu": (("chain", "draw"), X[:, 0].reshape(SHAPE)),
        "theta": (("chain", "draw", "school"), X[:, 1:].reshape(*SHAPE, 2)),
    }
    return xr.Dataset(variables | more)


def chains(values):
    return ("chain", "draw"), np.asarray(values).reshape(SHAPE)


FACTORS = np.zeros((N, 2, 2))  # Cholesky factors of correlations
FACTORS[:, 0, 0] = 1
FACTORS[:, 1] = X[:, :2]
MORE = {
    "lp__": (chains(NOT_DATA["lp__"][0]), {"lp__": "of a sampler"}, []),
    "a constant": (chains(np.full(N, 2.0)), {"a constant": "constant"}, []),
    "L": (
        (("chain", "draw", "i", "j"), FACTORS.reshape(*SHAPE, 2, 2)),
        {"L[0,0]": "constant", "L[0,1]": "constant"},
        [FACTORS[:, 1]],
    ),
    "row": (chains(COUNT), {"row": "an index"}, []),
    "y": (("obs", np.arange(5.0)), {"y": "without draws"}, []),
    "tuned": (((), True), {"tuned": "without draws"}, []),
    "step": (("chain", np.arange(4.0)), {"step": "without draws"}, []),
    "label": (("school", ["p", "q"]), {"label": "without draws"}, []),
}
HOLD = {
    "Dataset": lambda data: data,
    "DataTree": lambda data: xr.DataTree.from_dict({"posterior": data}),
    "other order": lambda data: data.transpose("school", "draw", "chain", ...),
    "stacked": lambda data: data.stack(sample=("chain", "draw")),
    "stacked under another name": lambda data: data.stack(s=("chain", "draw")),
}


@pytest.mark.parametrize(
    ("name", "hold"),
    # where chains and draws are stacked, a number for each chain has draws
    [(name, hold) for name in MORE for hold in HOLD if name != "step" or hold[:7] != "stacked"],
)
def test_variables_of_a_posterior(name, hold):
    variable, left_out, more = MORE[name]
    posterior = HOLD[hold](dataset(**{name: variable}))
    rows, message = told(thin, posterior, 9, rng=0)
    expected = thin(np.column_stack([X, *more]), 9, standardize="scale", rng=0)
    np.testing.assert_array_equal(rows, expected)
    (reason,) = set(left_out.values())
    assert f"left out of the distance: {', '.join(left_out)} ({reason}). " in message
    few = take_draws(posterior, rows)
    few = few["posterior"] if hold == "DataTree" else few
    np.testing.assert_array_equal(few["mu"], X[None, rows, 0])
    if reason == "without draws":
        taken = variable[1] if name != "step" else np.arange(4.0)[None, rows // 30]
        np.testing.assert_array_equal(few[name], taken)


DATASETS = {
    "one chain": ({"x": ("draw", X[:, 0]), "c": ((), 1.0)}, ["x"]),
    "one chain and data": ({"x": ("draw", X[:, 0]), "y": ("obs", np.arange(5.0))}, ["x"]),
    "samples": ({"y": ("obs", np.arange(5.0)), "x": (("k", "sample"), X.T)}, ["x"]),
    "a shared dimension": ({"x": ("t", X[:, 0]), "v": (("draw", "t"), X[:, 1:].T)}, ["x", "v"]),
}


@pytest.mark.parametrize(("variables", "drawn"), DATASETS.values(), ids=DATASETS)
def test_dimensions_of_draws_are_the_same_in_files(variables, drawn, tmp_path):
    data = xr.Dataset(variables)
    data.to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    columns = [X[:, :1], X[:, 1:]] if len(drawn) == 2 else [X if "k" in data.dims else X[:, :1]]
    expected = thin(np.column_stack(columns), 9, standardize="scale", rng=0)
    if len(drawn) == len(variables):
        np.testing.assert_array_equal(quiet(thin, data, 9, rng=0), expected)
    else:
        np.testing.assert_array_equal(check_same(data, tmp_path, "nc"), expected)
    assert set(take_draws(data, expected).data_vars) == set(variables)


@pytest.mark.parametrize(
    "variables",
    [{"x": ("chain", [1.0]), "y": ("draw", [1.0])}, {"x": ("a", [1.0]), "y": ("b", [1.0])},
     {"x": (("a", "b"), X)}, {"x": ((), 1.0)}],
    ids=["chain or draw", "none shared", "two shared", "a number"],
)  # fmt: skip
def test_datasets_without_draws(variables, tmp_path, capsys):
    data = xr.Dataset(variables)
    data.to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="^points must have variables with dimen") as caught:
        thin(data, 1)
    assert run(tmp_path / "in.nc", "-o", tmp_path / "out.nc", "--size", 1) == 2
    same = str(caught.value).removeprefix("points")
    assert f"in.nc: the dataset{same}\n" in capsys.readouterr().err


def test_dicts_of_draws():
    arrays = {name: chains(column)[1] for name, column in DATA.items()}
    flat = {"a": X[:, 0], "v": X[:, 1:]}
    for points, more in ((arrays, chains(NOT_DATA["lp__"][0])[1]), (flat, NOT_DATA["lp__"][0])):
        rows, message = told(thin, {"lp__": more} | points | {"k": 0 * more}, 9, rng=0)
        np.testing.assert_array_equal(rows, thin(X, 9, standardize="scale", rng=0))
        assert "distance: lp__ (of a sampler); k (constant). " in message
        with pytest.raises(ValueError, match=r"^points must have a column to compute with; .*lp__"):
            thin({"lp__": more}, 9)


def test_one_variable_is_taken_whatever_its_name():
    """It was chosen by hand."""
    posterior = dataset(lp__=chains(NOT_DATA["lp__"][0]))
    rows = quiet(thin, posterior["lp__"], 9, rng=0)
    expected = thin(NOT_DATA["lp__"][0][:, None], 9, standardize="scale", rng=0)
    np.testing.assert_array_equal(rows, expected)


# the command

WRITTEN = {
    # booleans are no numbers in CSV
    "csv": (NOT_DATA.keys() - {"flag"}, lambda frame, path: frame.to_csv(path, index=False)),
    "parquet": (NOT_DATA.keys() - {""}, lambda frame, path: frame.to_parquet(path)),
}


@pytest.mark.parametrize("ending", WRITTEN)
def test_frames_and_files_leave_out_the_same(ending, tmp_path):
    names, write = WRITTEN[ending]
    frame = pd.DataFrame(awkward(sorted(names)))
    write(frame, tmp_path / f"in.{ending}")
    check_same(frame, tmp_path, ending)


def test_posteriors_and_files_leave_out_the_same(tmp_path):
    posterior = dataset(**{name: variable for name, (variable, *_) in MORE.items()})
    posterior = posterior.assign(L=posterior["L"].stack(ij=("i", "j")).reset_index("ij", drop=True))
    posterior.to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    check_same(posterior, tmp_path, "nc")
    with xr.open_dataset(tmp_path / "out.nc", engine="h5netcdf") as few:
        assert few["y"].variable.equals(posterior["y"].variable)


def check_same(points, folder, ending):
    succeed(folder / f"in.{ending}", "-o", folder / f"out.{ending}", "--size", 9, "--seed", 0,
            "--report", folder / "r.json")  # fmt: skip
    report = json.loads((folder / "r.json").read_text())
    rows, message = told(thin, points, 9, rng=0)
    assert report["row_numbers"] == rows.tolist()
    listed = message.split(": left out of the distance: ")[1].split(". An array")[0]
    found = {}
    for part in listed.split("; "):
        names, reason = part.removesuffix(")").rsplit(" (", 1)
        found |= dict.fromkeys((x.replace("''", "") for x in names.split(", ")), reason)
    assert found == report["left_out"]
    return rows


# two samples

OTHER = np.random.default_rng(5).normal(size=(40, 3)) * [1, 5, 0.1] + [0, 1, 0]
PAIRS = {"mmd": lambda x, y: mmd(x, y), "mmd2_unbiased": lambda x, y: mmd2_unbiased(x, y)}
PAIR = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


def frames(names="abc"):
    return pd.DataFrame(X, columns=list(names)), pd.DataFrame(OTHER, columns=list(names))


@PAIR
@pytest.mark.parametrize("kind", KINDS)
def test_named_columns_on_either_side_are_scaled(pair, kind):
    """By the same scales, and not by an order of columns that names contradict."""
    x, y = frames()
    expected = quiet(pair, x, y)
    assert quiet(pair, x, OTHER) == expected
    assert quiet(pair, X, y) == expected
    assert quiet(pair, KINDS[kind](dict(x)), KINDS[kind](dict(y))) == expected
    assert quiet(pair, x, y[["c", "a", "b"]]) == expected
    one_label = [frame.set_axis(["a"] * 3, axis=1) for frame in (x, y)]
    assert quiet(pair, *one_label) == expected
    unscaled = mmd(X, OTHER, standardize=False), mmd2_unbiased(X, OTHER, standardize=False)
    assert expected not in unscaled


@PAIR
def test_columns_of_only_one_side(pair):
    x, y = frames()
    other = y.rename(columns={"b": "beta"})
    title = "(coreset must have the columns of points|y must have the columns of x)"
    with pytest.raises(
        ValueError,
        match=f"^{title}; only (points|x) has b and only (coreset|y) has beta. Arrays have no name",
    ):
        pair(x, other)
    with pytest.raises(ValueError, match=f"^{title}; only (coreset|y) has d. Arrays have no"):
        pair(x, y.assign(d=1.0))
    with pytest.raises(ValueError, match=f"^{title}; a name stands there twice. Arrays"):
        pair(x.set_axis(["a", "a", "b"], axis=1), y.set_axis(["a", "b", "a"], axis=1))
    pair(x, other.to_numpy())  # the remedy
    for one, two in ((x, OTHER[:, :2]), (X[:, :2], y), (X, OTHER[:, :2])):
        with pytest.raises(ValueError, match=r"must have the [23] dimensions of (x|points); got"):
            pair(one, two)


@PAIR
def test_both_sides_lose_the_same_columns(pair):
    x, y = frames()
    expected = quiet(pair, x, y)
    sampler = {"lp__": 1.0, "chain": 2}
    number, ones = np.arange(40), np.ones(40)
    numbered = x.assign(id=COUNT)
    for one, two in [
        (x.assign(**sampler), y.assign(**sampler)),
        (x.assign(**sampler), y),  # of one side alone: a coreset from elsewhere
        (x, y.assign(**sampler)),
        (x.assign(**sampler), np.column_stack([OTHER, ones, ones])),
        (np.column_stack([X, COUNT, COUNT]), y.assign(**sampler)),
        (numbered, y.assign(id=number)),
        (numbered, y.assign(id=number[::-1])),
        (numbered, y),
        (numbered, np.column_stack([OTHER, number[::-1]])),
        (x.assign(k=3.0), y.assign(k=3.0)),
        (x.assign(k=3.0), np.column_stack([OTHER, 3 * ones])),
    ]:
        assert told(pair, one, two)[0] == expected
    for one, two in [
        (x.assign(k=3.0), y.assign(k=4.0)),  # constant in each, and it tells them apart
        (x.assign(k=3.0), y.assign(k=number)),
        (x.assign(k=COUNT), y.assign(k=3.0)),
    ]:
        assert quiet(pair, one, two) == quiet(pair, one, two.to_numpy()) != expected


@PAIR
def test_a_posterior_beside_a_frame(pair):
    x, y = frames(["mu", "theta[0]", "theta[1]"])
    posterior = dataset(lp__=chains(COUNT), y=("obs", np.arange(3.0)))
    value, message = told(pair, posterior, y[["theta[1]", "mu", "theta[0]"]])
    assert value == quiet(pair, x, y)
    assert "y (without draws); lp__ (of a sampler)" in message
