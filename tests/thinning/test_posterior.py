"""`take_draws`: the chosen draws as a posterior of one chain, from each container of draws."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import xarray as xr
from arviz_base import extract, from_dict

from thinformer import take_draws, thin
from thinformer.thinning.tables import as_points

CHAINS, DRAWS = 4, 15
X = np.random.default_rng(0).normal(size=(CHAINS * DRAWS, 3))
ROWS = np.array([3, 14, 15, 40, 59])
LABELS = {"chain": [5, 6, 7, 8], "draw": np.arange(100, 115), "school": ["a", "b"]}


def dataset(x=X):
    """Four chains of 15 draws of a number and a vector, with labels that do not count from 0."""
    return xr.Dataset(
        {
            "mu": (("chain", "draw"), x[:, 0].reshape(4, 15)),
            "theta": (("chain", "draw", "school"), x[:, 1:].reshape(4, 15, 2)),
        },
        LABELS,
        {"inference_library": "mine"},
    )


class InferenceData:
    """What `take_draws` uses of ArviZ before version 1."""

    def __init__(self, attrs=None, **groups):
        self.attrs, self._groups = attrs, groups
        self.__dict__.update(groups)

    def groups(self):
        return list(self._groups)

    def __getitem__(self, name):
        return self._groups[name]


def groups(x=X):
    """A posterior and groups with its draws, without draws, and with other draws."""
    own = xr.Dataset({"y": (("chain", "draw", "school"), x[:, :2].reshape(4, 15, 2))}, LABELS)
    return {
        "posterior": dataset(x),
        "log_likelihood": own,
        "sample_stats": own.assign(
            step_size=("chain", [0.1, 0.2, 0.3, 0.4]), tuned=((), True), order=("school", [1, 2])
        ),
        "log_prior": own,
        "prior": own,
        "sample_stats_prior": own,
        "warmup_posterior": own,
        "posterior_predictive": own.isel(draw=slice(10)),  # of other draws
        "observed_data": own.isel(chain=0, draw=0, drop=True),
    }


STACKED = {"sample": ("chain", "draw")}
DATASETS = {
    "Dataset": dataset(),
    "other order": dataset().transpose("school", "draw", "chain"),
    "stacked": dataset().stack(STACKED),
    "stacked, draws first": dataset().stack(STACKED).transpose("sample", ...),
    "stacked under another name": dataset().stack(row=("chain", "draw")),
    "stacked, without an index": dataset().stack(STACKED).reset_index("sample"),
}


def check_chosen(few, rows=ROWS):
    """The posterior of one chain holds the chosen rows of X and says where they were."""
    assert few["mu"].dims == ("chain", "draw")
    assert few["theta"].dims == ("chain", "draw", "school")
    np.testing.assert_array_equal(few["mu"], X[None, rows, 0])
    np.testing.assert_array_equal(few["theta"], X[None, rows, 1:])
    np.testing.assert_array_equal(few["chain"], [0])
    np.testing.assert_array_equal(few["draw"], np.arange(len(rows)))
    np.testing.assert_array_equal(few["school"], ["a", "b"])
    assert few["source_chain"].dims == few["source_draw"].dims == ("draw",)
    np.testing.assert_array_equal(few["source_chain"], 5 + rows // DRAWS)
    np.testing.assert_array_equal(few["source_draw"], 100 + rows % DRAWS)


@pytest.mark.parametrize("points", DATASETS.values(), ids=DATASETS)
def test_a_dataset(points):
    few = take_draws(points, ROWS)
    assert type(few) is xr.Dataset
    check_chosen(few)
    assert few.attrs == {"inference_library": "mine"}
    assert set(few.coords) == {"chain", "draw", "school", "source_chain", "source_draw"}
    np.testing.assert_array_equal(as_points(few), X[ROWS])


@pytest.mark.parametrize("points", DATASETS.values(), ids=DATASETS)
def test_one_variable(points):
    for name in ("mu", "theta"):
        few = take_draws(points[name], ROWS)
        assert type(few) is xr.DataArray
        assert few.identical(take_draws(points, ROWS)[name])
        assert take_draws(points[name].rename("draw of mu"), ROWS).name == "draw of mu"


def check_groups(few, before):
    """Groups with the draws of the posterior hold the chosen ones; the others are as they were."""
    for name in ("log_likelihood", "sample_stats", "log_prior"):
        np.testing.assert_array_equal(few[name]["y"], X[None, ROWS, :2])
        for c in ("chain", "draw", "source_chain", "source_draw"):
            assert few[name][c].equals(few["posterior"][c])
    np.testing.assert_array_equal(
        few["sample_stats"]["step_size"], np.array([[0.1, 0.2, 0.3, 0.4]])[:, ROWS // DRAWS]
    )
    for name in ("tuned", "order"):
        assert few["sample_stats"][name].identical(before["sample_stats"][name])
    for name in set(before) - {"posterior", "log_likelihood", "sample_stats", "log_prior"}:
        assert few[name].identical(before[name]), name


def test_all_groups_of_a_tree():
    tree = xr.DataTree.from_dict(groups(), name="run")
    few = take_draws(tree, ROWS)
    assert type(few) is xr.DataTree
    assert few.name == "run"
    check_chosen(few["posterior"])
    check_groups({name: few[name].dataset for name in few.children}, groups())
    assert tree.identical(xr.DataTree.from_dict(groups(), name="run"))


@pytest.mark.parametrize("stacked", [False, True])
def test_all_groups_of_inference_data(stacked):
    before = groups()
    if stacked:
        before = {
            name: group.stack(STACKED) if {"chain", "draw"} <= set(group.dims) else group
            for name, group in before.items()
        }
    few = take_draws(InferenceData(attrs={"made": "here"}, **before), ROWS)
    assert type(few) is InferenceData
    assert few.attrs == {"made": "here"}
    check_chosen(few["posterior"])
    check_groups(few, before)


def test_a_part_of_a_tree():
    tree = xr.DataTree.from_dict({"run/posterior": dataset(), "run/log_likelihood": dataset()})
    few = take_draws(tree["run"], ROWS)
    check_chosen(few["posterior"])
    check_chosen(few["log_likelihood"])
    few = take_draws(tree["run/posterior"], ROWS)
    assert type(few) is xr.DataTree
    check_chosen(few)


def test_arviz_takes_it():
    posterior = from_dict({"posterior": {"mu": X[:, 0].reshape(4, 15), "v": X.reshape(4, 15, 3)}})
    few = take_draws(posterior, thin(posterior, 9, rng=0))
    rows = thin(extract(posterior), 9, rng=0)
    np.testing.assert_array_equal(extract(few)["mu"], X[rows, 0])
    np.testing.assert_array_equal(extract(few, var_names="v"), X[rows].T)


def test_arviz_summarises_it():
    import arviz_stats as stats

    tree = xr.DataTree.from_dict(groups())
    few = take_draws(tree, np.arange(3, 60, 2))
    summary = stats.summary(few, var_names=["mu"], round_to="none")
    np.testing.assert_allclose(float(summary["mean"].iloc[0]), X[3::2, 0].mean())
    with pytest.warns(UserWarning, match="Pareto"):  # these are too few for its estimate
        assert stats.loo(few).n_samples == 29


def test_draws_taken_twice_say_where_they_were_at_first():
    tree = xr.DataTree.from_dict(groups())
    again = take_draws(take_draws(tree, ROWS), [1, 3])
    check_chosen(again["posterior"], ROWS[[1, 3]])
    np.testing.assert_array_equal(again["log_likelihood"]["y"], X[None, ROWS[[1, 3]], :2])
    assert again["sample_stats_prior"].identical(tree["sample_stats_prior"])


def test_one_chain_without_its_dimension():
    points = dataset().isel(chain=2)
    few = take_draws(points, [1, 4])
    check_chosen(few, 2 * DRAWS + np.array([1, 4]))
    few = take_draws(points.drop_vars(["chain", "draw"]), [1, 4])
    np.testing.assert_array_equal(few["mu"], X[None, [31, 34], 0])
    np.testing.assert_array_equal(few["source_draw"], [1, 4])
    assert "source_chain" not in few.coords


def test_a_dimension_of_another_kind_keeps_its_name():
    points = xr.Dataset({"a": ("t", X[:, 0]), "b": (("k", "t"), X[:, 1:].T)}, {"t": np.arange(60)})
    assert take_draws(points, ROWS).identical(points.isel(t=ROWS))
    points = points.rename(t="sample")
    assert take_draws(points, ROWS).identical(points.isel(sample=ROWS))


def test_awkward_names():
    """Variables named like what other containers are known by."""
    names = {"mu": "subtree", "theta": "groups"}
    few = take_draws(dataset().rename(names), ROWS)
    check_chosen(few.rename({new: old for old, new in names.items()}))
    few = take_draws(dataset().rename(mu="children", theta="dataset"), ROWS)
    check_chosen(few.rename(children="mu", dataset="theta"))


@pytest.mark.parametrize("points", [X, X.tolist(), pd.DataFrame(X), pl.DataFrame(X), {}, None])
def test_what_is_no_posterior(points):
    with pytest.raises(TypeError, match=f"^posterior must .* got {type(points).__name__}. Rows of"):
        take_draws(points, ROWS)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([0, 60], ValueError, "from 0 to 59, as the posterior has 60 draws; got 0 to 60$"),
        ([-1, 3], ValueError, "got -1 to 3$"),
        ([0.0, 1.0], TypeError, r"of shape \(size,\), .* got dtype float64, shape \(2,\)$"),
        (np.ones(60, bool), TypeError, r"got dtype bool, shape \(60,\)$"),
        ([[0], [1]], TypeError, r"got dtype int64, shape \(2, 1\)$"),
        (3, TypeError, r"got dtype int64, shape \(\)$"),
    ],
)
def test_what_are_no_rows(rows, error, message):
    with pytest.raises(error, match="^rows must be .*" + message):
        take_draws(dataset(), rows)


def test_what_has_no_draws():
    with pytest.raises(ValueError, match="^posterior must have at least one variable$"):
        take_draws(xr.DataTree.from_dict({"prior": dataset()}), ROWS)
    with pytest.raises(ValueError, match=r"^posterior must have .*; they share \['k', 't'\]$"):
        take_draws(xr.Dataset({"a": (("t", "k"), X)}), ROWS)
