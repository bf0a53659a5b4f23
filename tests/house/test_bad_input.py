"""Bad input: an error that names the argument and what it got, and nothing changed."""

import math

import numpy as np
import pytest
import torch

from thinformer import (
    Draws,
    Kernel,
    ThinformerAttention,
    attention,
    compress_kv,
    compress_schedule,
    coreset_size,
    kernel_halve,
    kh_compress,
    make_draws,
    set_num_threads,
)
from thinformer.kernels import gaussian, linear, polynomial

RNG = np.random.default_rng(0)
Q, K, V = (RNG.standard_normal(shape) for shape in ((2, 5, 3, 4), (2, 20, 3, 4), (2, 20, 3, 6)))
GRAM = np.eye(6)
POINTS = RNG.standard_normal((20, 2))
SCHEDULE = compress_schedule(20, 5)

CALLS = {
    "kernel_halve": lambda **k: kernel_halve(**{"K": GRAM} | k),
    "kh_compress": lambda **k: kh_compress(**{"points": POINTS, "rng": 0} | k),
    "compress_kv": lambda **k: compress_kv(**{"key": K, "value": V, "rng": 0} | k),
    "attention": lambda **k: attention(**{"query": Q, "key": K, "value": V, "rng": 0} | k),
}
ARRAYS = {
    "kernel_halve": {"K": GRAM},
    "kh_compress": {"points": POINTS},
    "compress_kv": {"key": K, "value": V},
    "attention": {"query": Q, "key": K, "value": V},
}
EACH_ARRAY = [(call, name) for call, arrays in ARRAYS.items() for name in arrays]
SETTINGS = [call for call in CALLS if call != "kernel_halve"]


def test_the_calls_work_without_a_fault():
    for call in CALLS.values():
        call()


@pytest.mark.parametrize(("call", "name"), EACH_ARRAY)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_not_finite(call, name, bad, dtype):
    arrays = {n: a.astype(dtype) for n, a in ARRAYS[call].items()}
    arrays[name][(-1,) * arrays[name].ndim] = bad
    if call == "kernel_halve":
        arrays[name] = np.maximum(arrays[name], arrays[name].T)
    before = arrays[name].copy()
    with pytest.raises(ValueError, match=f"^{name} must be finite; it holds NaN or infinity"):
        CALLS[call](**arrays)
    np.testing.assert_array_equal(arrays[name], before)


@pytest.mark.parametrize(("call", "name"), EACH_ARRAY)
@pytest.mark.parametrize("dtype", [int, bool, object, complex, "S4", np.longdouble])
def test_dtype(call, name, dtype):
    array = ARRAYS[call][name].astype(dtype)
    with pytest.raises(TypeError, match=rf"^{name} must be float16.*got dtype {array.dtype}"):
        CALLS[call](**{name: array})


@pytest.mark.parametrize(("call", "name"), EACH_ARRAY)
def test_rank(call, name):
    with pytest.raises(ValueError, match=rf"^{name} must have shape .*got shape \(3,\)"):
        CALLS[call](**{name: np.ones(3)})


@pytest.mark.parametrize("call", ["compress_kv", "attention"])
def test_five_dimensions(call):
    five = np.ones((1, 2, 20, 3, 4))
    with pytest.raises(ValueError, match=r"^key must have shape \(B, S, H, E\); got shape"):
        CALLS[call](key=five, value=five)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"value": V[:, :19]}, r"^value must have shape .*\(2, 20, 3, 4\); got shape \(2, 19"),
        ({"value": V[:1]}, r"^value must have shape"),
        ({"value": V[:, :, :2]}, r"^value must have shape"),
        ({"query": Q[:1]}, r"^query must have shape .*\(2, 20, 3, 4\); got shape \(1, 5"),
        ({"query": Q[:, :, :2]}, r"^query must have shape"),
        ({"query": Q[..., :3]}, r"^query must have shape"),
        ({"query": Q[..., None]}, r"^query must have shape"),
        ({"key": K[:, :0], "value": V[:, :0]}, r"^key must have at least one token"),
        ({"key": K[..., :0], "query": Q[..., :0]}, r"^key must have at least one token and col"),
        ({"value": V[..., :0]}, r"^value must have at least one token and column"),
    ],
)
def test_attention_shapes(arrays, message):
    with pytest.raises(ValueError, match=message):
        CALLS["attention"](**arrays)


@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize(("dtype", "others"), [("float32", "float64"), ("float16", "float32")])
def test_mixed_dtypes(name, dtype, others):
    arrays = {n: array.astype(others) for n, array in ARRAYS["attention"].items()}
    arrays[name] = arrays[name].astype(dtype)
    with pytest.raises(TypeError, match=rf"must have one dtype; got .*{name} {dtype}"):
        CALLS["attention"](**arrays)
    if name != "query":
        del arrays["query"]
        with pytest.raises(TypeError, match=rf"must have one dtype; got .*{name} {dtype}"):
            CALLS["compress_kv"](**arrays)


def test_gram_matrix_shapes():
    with pytest.raises(ValueError, match=r"^K must have shape \(\.\.\., S, S\); got shape \(6, 5"):
        kernel_halve(np.ones((6, 5)))
    with pytest.raises(ValueError, match="^K must have at least one point"):
        kernel_halve(np.ones((0, 0)))
    with pytest.raises(ValueError, match="^points must have at least one point"):
        kh_compress(np.ones((0, 2)))
    with pytest.raises(ValueError, match="^points must have at least one dimension"):
        kh_compress(np.ones((5, 0)))


def test_gram_matrix_not_symmetric():
    K = np.ones((3, 6, 6))
    K[1, 2, 4] = 1.5
    with pytest.raises(ValueError, match=r"^K must be symmetric; .*differ by 0\.5"):
        kernel_halve(K)
    K = np.eye(6, dtype=np.float32)
    K[0, 1] = 1e-6  # rounding is forgiven
    kernel_halve(K)
    K = np.array([1e6 * np.eye(6), np.eye(6)])
    K[0, 0, 1], K[1, 2, 3] = 1e-3, 0.5  # and told from a fault, each matrix by its own size
    with pytest.raises(ValueError, match=r"differ by 0\.5 "):
        kernel_halve(K)


@pytest.mark.parametrize("call", SETTINGS)
@pytest.mark.parametrize("g", [-1, 1.5, "2", None, True])
def test_g(call, g):
    with pytest.raises(ValueError, match=f"^g must be an integer of at least 0; got {g!r}"):
        CALLS[call](g=g)


@pytest.mark.parametrize("call", SETTINGS)
@pytest.mark.parametrize("size", [0, -3, 2.0, "8"])
def test_size(call, size):
    with pytest.raises(ValueError, match=f"^size must be an integer of at least 1; got {size!r}"):
        CALLS[call](size=size)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("delta", [0, -0.1, 1.01, math.nan, math.inf, "0.5", None])
def test_delta(call, delta):
    with pytest.raises(ValueError, match=rf"^delta must lie in \(0, 1\]; got {delta!r}"):
        CALLS[call](delta=delta)


@pytest.mark.parametrize("call", ["compress_kv", "attention"])
@pytest.mark.parametrize("scale", [0, -1.0, math.nan, math.inf, "1", True])
def test_scale(call, scale):
    with pytest.raises(ValueError, match=f"^scale must be positive and finite; got {scale!r}"):
        CALLS[call](scale=scale)


def test_scale_beyond_the_dtype():
    arrays = {name: array.astype("f4") for name, array in ARRAYS["attention"].items()}
    with pytest.raises(ValueError, match="^scale must be in the range of float32; got 1e"):
        attention(**arrays, scale=1e40)


@pytest.mark.parametrize("call", ["compress_kv", "attention"])
def test_pre_thin(call):
    with pytest.raises(ValueError, match="^pre_thin must be one of 'even', 'stride'; got 'odd'"):
        CALLS[call](pre_thin="odd")


def test_kernel():
    with pytest.raises(ValueError, match=r"^kernel must be .*gaussian.*; got 'rbfs'"):
        CALLS["kh_compress"](kernel="rbfs")


@pytest.mark.parametrize("rng", ["seed", 1.5, -1, np.array([1.5])])
def test_rng(rng):
    with pytest.raises((TypeError, ValueError), match="^rng must be None, a non-neg"):
        CALLS["kh_compress"](rng=rng)


def test_draws():
    good = Draws((np.zeros(3),), (np.zeros(1, bool),))
    kernel_halve(GRAM, draws=good)
    for draws, message in (
        (Draws((), good.coins), r"draws.uniforms must have one array for each of 1 rounds; got 0"),
        (Draws(good.uniforms, ()), r"draws.coins must have one array for each of 1 rounds; got 0"),
        (Draws((np.zeros(4),), good.coins), r"draws.uniforms must have shape \(\.\.\., 3\)"),
        (Draws((np.zeros((2, 3)),), good.coins), r"axes that broadcast to \(\); got \(2, 3\)"),
        (Draws(good.uniforms, (np.zeros(2, bool),)), r"draws.coins must have shape \(\.\.\., 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            kernel_halve(GRAM, draws=draws)
    with pytest.raises(ValueError, match=r"draws.strata must have shape \(\.\.\., 17\).*got None"):
        kh_compress(POINTS, size=8, draws=Draws((np.zeros(8),), (np.zeros(1, bool),)))
    for beyond in (1.0, -0.1, np.nan):  # a position of no point
        strata = np.full(17, 0.5)
        strata[3] = beyond
        with pytest.raises(ValueError, match=r"draws.strata must lie in \[0, 1\); got "):
            kh_compress(POINTS, size=8, draws=Draws((np.zeros(8),), (np.zeros(1, bool),), strata))

    for draws in (np.zeros(3), (np.zeros(3), np.zeros(1)), "draws"):
        with pytest.raises(TypeError, match="draws must be a thinformer.Draws; got "):
            kernel_halve(GRAM, draws=draws)
        with pytest.raises(TypeError, match="draws must be a thinformer.Draws; got "):
            kh_compress(POINTS, size=8, draws=draws)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_threads(threads):
    with pytest.raises(ValueError, match="^threads must be an integer of at least 1; got "):
        set_num_threads(threads)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: coreset_size(0, 1), "^n_points must be an integer of at least 1; got 0"),
        (lambda: coreset_size(100, -5), "^g must be an integer of at least 0; got -5"),
        (lambda: compress_schedule(10, 0), "^size must be an integer of at least 1; got 0"),
        (lambda: compress_schedule(10, 11), "^size must be at most n_points = 10; got 11"),
        (lambda: compress_schedule(10, 5, 0), r"^delta must lie in \(0, 1\]; got 0"),
        (lambda: make_draws(SCHEDULE, -1), "^seed must be an integer of at least 0; got -1"),
        (lambda: make_draws(SCHEDULE, 2**64), r"^seed must be below 2\^64; got 1844674407370955"),
        (
            lambda: make_draws(SCHEDULE, 0, heads=0),
            "^heads must be an integer of at least 1",
        ),
        (lambda: gaussian("1"), "^bandwidth must be positive and finite; got '1'"),
        (lambda: polynomial(0.5), "^degree must be an integer of at least 1; got 0.5"),
        (lambda: polynomial(0), "^degree must be an integer of at least 1; got 0"),
        (lambda: polynomial(constant=math.nan), "^constant must be finite; got nan"),
        (lambda: linear(math.inf), "^constant must be finite; got inf"),
        (lambda: kh_compress(POINTS, kernel=Kernel("mine", 99)), "^kernel must be a Kernel or"),
        (
            lambda: kh_compress(POINTS.astype("f4"), kernel=gaussian(1e-50)),
            "^kernel gaussian has a bandwidth beyond the range of float32",
        ),
    ],
)
def test_building_blocks(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_numpy_integers_are_integers():
    assert compress_schedule(np.int64(100), np.int32(10)) == compress_schedule(100, 10)
    assert coreset_size(np.uint8(100), np.int16(1)) == 16
    assert coreset_size(100, 10**9) == 100
    assert len(kh_compress(POINTS, g=np.int64(0), size=np.int8(5), rng=np.int64(3))) == 5
    set_num_threads(np.int64(2))


class TestModule:
    """The torch module: the same faults."""

    q, k, v = map(torch.tensor, (Q, K, V))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"g": -1}, "^g must be an integer of at least 0; got -1"),
            ({"g": 2.0}, "^g must be"),
            ({"scale": 0}, "^scale must be positive and finite; got 0"),
            ({"scale": -0.5}, "^scale must be"),
            ({"size": 0}, "^size must be an integer of at least 1; got 0"),
            ({"pre_thin": "none"}, "^pre_thin must be one of"),
            ({"scale": True}, "^scale must be"),
        ],
    )
    def test_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            ThinformerAttention(**settings)

    def test_shapes(self):
        module = ThinformerAttention()
        for arguments, name in (
            ((self.q, self.k[0], self.v), "key"),
            ((self.q, self.k, self.v[:, :5]), "value"),
            ((self.q[:1], self.k, self.v), "query"),
            ((self.q[..., :2], self.k, self.v), "query"),
            ((self.q, self.k[:, :0], self.v[:, :0]), "key"),
        ):
            with pytest.raises(ValueError, match=f"^{name} must have"):
                module(*arguments)

    def test_types(self):
        module = ThinformerAttention()
        with pytest.raises(TypeError, match=r"^generator must be a torch.Generator or None; got 3"):
            ThinformerAttention(generator=3)
        with pytest.raises(TypeError, match=r"^key must be a torch.Tensor; got ndarray"):
            module(self.q, K, self.v)
        with pytest.raises(TypeError, match=r"^value must be float16.*got dtype torch.int64"):
            module(self.q, self.k, self.v.long())
        with pytest.raises(TypeError, match=r"must have one dtype; got .*key torch.float32"):
            module(self.q, self.k.float(), self.v)

    def test_other_devices(self):
        """Never a silent copy."""
        module = ThinformerAttention()
        with pytest.raises(
            ValueError, match="^query, key, value must be on one device; got .*key on"
        ):
            module(self.q, self.k.to("meta"), self.v)
        with pytest.raises(NotImplementedError, match="^query is on device meta; .* takes"):
            module(*(tensor.to("meta") for tensor in (self.q, self.k, self.v)))
