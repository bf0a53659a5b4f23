"""Record the vectors that ``thinformer validate`` checks an installation against.

    python tests/data/record_vectors.py [FILE]

They go into FILE or else ``thinformer/data/vectors.npz``: the published implementation's (from
``golden/`` beside this file), and what the NumPy specification in ``reference/`` returns for
further problems. Each case has its inputs, its draws or the seed they come from, the indices and,
from the specification's trace, the smallest margin of a decision. Inputs are numbers of float16 (or
float32, where float16 has no such number), and stored so. `thinformer.measuring.validate` says what
the fields are.
"""

import json
import sys
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from specified import Specified  # noqa: E402

from reference import kernels as reference_kernels  # noqa: E402
from reference.attention import thinformer_attention  # noqa: E402
from reference.compress import kh_compress, stratified_thin  # noqa: E402
from reference.halving import kernel_halving  # noqa: E402
from thinformer.data import ACTIVATIONS, load_activations  # noqa: E402
from thinformer.halving.draws import Draws, make_draws  # noqa: E402
from thinformer.halving.plan import plan  # noqa: E402
from thinformer.halving.schedule import compress_schedule, coreset_size, published_length  # noqa: E402
from thinformer.kernels.catalogue import KERNELS  # noqa: E402
from thinformer.measuring.validate import INPUTS, TOLERANCE  # noqa: E402

OUTPUT = ROOT / "thinformer" / "data" / "vectors.npz"


def smallest_margin(traces):
    """The margin of the decision that was closest to falling the other way."""
    return min((float(trace.margin.min()) for trace in traces), default=np.inf)


def draws_fields(draws):
    """The arrays of draws, by the names that `thinformer.measuring.validate` expects."""
    fields = {f"uniforms{i}": u for i, u in enumerate(draws.uniforms)}
    return fields | {f"coins{i}": c for i, c in enumerate(draws.coins)}


def published_cases():
    """The cases of the published implementation."""
    listed = json.loads((HERE / "golden" / "thinformer_vectors.json").read_text())
    arrays = np.load(HERE / "golden" / "thinformer_vectors.npz")
    for case in listed:
        name = case["name"]
        if case["kind"] == "halve":
            K, u, coin = arrays[f"{name}_K"], arrays[f"{name}_u"], np.array([case["coin"]])
            _, trace = kernel_halving(K, case["delta"], u)
            yield (
                {
                    "family": "published halving",
                    "kind": "halve",
                    "id": name,
                    "delta": case["delta"],
                },
                {"K": K, "uniforms0": u, "coins0": coin, "indices": arrays[f"{name}_idx"]},
                np.float64,
                smallest_margin([trace]),
            )
            continue
        key, value, query = (arrays[f"{name}_{role}"] for role in ("key", "value", "query"))
        uniforms, coins = [], []
        for i, coin in enumerate(case["coins"]):
            u = arrays[f"{name}_u{i}"].transpose(0, 2, 1, 3)  # (B, H, buckets, pairs)
            uniforms.append(u.reshape(*u.shape[:2], -1))
            coins.append(np.full((1, 1, u.shape[2]), coin))
        draws = Draws(tuple(uniforms), tuple(coins))
        n = published_length(key.shape[1])
        schedule = compress_schedule(n, coreset_size(n, case["g"]), case["delta"])
        *_, traces = thinformer_attention(query, key, value, case["E"] ** -0.5, schedule, draws)
        yield (
            {"family": "published attention", "kind": "attention", "id": name,
             "pre_thin": "stride", "g": case["g"], "size": None, "delta": case["delta"]},
            {"query": query, "key": key, "value": value, **draws_fields(draws),
             "indices": arrays[f"{name}_indices"], "output": arrays[f"{name}_out"]},
            np.float64,
            min(smallest_margin(t) for t in traces.values()),
        )  # fmt: skip


def point_cases(rng):
    """Point sets under every kernel, and integer ones, on which sums have no rounding error."""
    for name in KERNELS:
        points = rng.standard_normal((500, 3)).astype(np.float16)
        points = np.abs(points) % 1 if name == "sobolev" else points
        yield from in_both(rng, "points", name, points, 40)
    # two far clusters: |x|^2 + |y|^2 - 2 <x, y> would have no digit of |x - y|^2 left
    clusters = rng.standard_normal((500, 3)) + 1e4 * rng.choice([-1, 1], (500, 1))
    yield from in_both(rng, "points", "gaussian", clusters.astype(np.float32), 40)
    for name in ("linear", "polynomial"):
        yield from in_both(rng, "integer points", name, rng.integers(-3, 4, (300, 3)), 32)


def in_both(rng, family, kernel, points, size):
    """A point set in both dtypes, so that it is stored once."""
    for dtype in (np.float64, np.float32):
        yield clearest(partial(point_case, family, kernel, points.astype(dtype), size), rng)


def clearest(make_case, rng):
    """The case, of ten with other draws, whose smallest margin is largest: far from a tie."""
    cases = [make_case(int(rng.integers(2**63))) for _ in range(10)]
    best = max(cases, key=lambda case: case[3])
    family, dtype = best[0]["family"], np.dtype(best[2]).name
    assert family == "integer points" or best[3] > TOLERANCE[dtype]
    return best


def point_case(family, kernel, points, size, seed):
    """One point set, thinned by the specification in the points' precision."""
    S = len(points)
    schedule = compress_schedule(S, size)
    draws = make_draws(schedule, seed)
    start = stratified_thin(S, schedule.length, draws.strata)
    gram = getattr(reference_kernels, kernel)
    kept, traces = kh_compress(
        lambda x: gram(x, x), points[start], schedule.rounds, draws.uniforms, draws.coins
    )
    return (
        {"family": family, "kind": "points", "kernel": kernel, "size": size, "seed": seed},
        {"points": points, "indices": start[kept]},
        points.dtype,
        smallest_margin(traces),
    )


def thin_cases(rng):
    """Kernel thinning and Compress++, in float64: their choices among all points can be close."""
    for name, (n, size, g) in product(
        ("gaussian", "matern", "energy"), ((500, 20, 1), (300, 7, 4))
    ):
        points = rng.standard_normal((n, 2)).astype(np.float16).astype(np.float64)
        yield clearest(partial(thin_case, name, points, size, g), rng)


def thin_case(name, points, size, g, seed):
    """One point set thinned by the specification."""
    gram = getattr(reference_kernels, name)
    specified = Specified(points, lambda x, y: gram(x, y, 1.5), seed)
    indices = specified.compress_plus_plus(size, g, 0.5)
    return (
        {"family": "thin", "kind": "thin", "kernel": name, "bandwidth": 1.5, "size": size, "g": g,
         "seed": seed},
        {"points": points, "indices": indices},
        points.dtype,
        float(min(specified.margins)),
    )  # fmt: skip


def activation_cases(rng):
    """The packaged activations; their arrays are not stored a second time."""
    for name in ACTIVATIONS:
        settings = zip(
            load_activations(name).items(), [(2, None), (0, None), (2, 100)], strict=True
        )
        for dtype, ((layer, arrays), (g, size)) in product((np.float64, np.float32), settings):
            arrays = {role: array.astype(dtype) for role, array in arrays.items()}
            yield clearest(partial(activation_case, name, layer, arrays, g, size), rng)


def activation_case(name, layer, arrays, g, size, seed):
    """One layer, by the specification in the arrays' precision."""
    key, value = arrays["key"], arrays["value"]
    _, S, H, E = key.shape
    schedule = plan(S, g, size, 0.5).schedule
    draws = make_draws(schedule, seed, H)
    query = arrays["query"][:, :1]
    *_, indices, traces = thinformer_attention(query, key, value, E**-0.5, schedule, draws)
    return (
        {"family": f"activations, {name}", "kind": "attention", "pre_thin": "even", "g": g,
         "size": size, "delta": 0.5, "activations": name, "layer": layer, "seed": seed},
        {"indices": indices},
        key.dtype,
        min(smallest_margin(t) for t in traces.values()),
    )  # fmt: skip


def smallest(name, array):
    """The array as it is stored: indices in int16, inputs in the smallest dtype that has them."""
    if name == "indices":
        return array.astype(np.int16)
    if name not in INPUTS:
        return array
    small = (array.astype(dtype) for dtype in (np.float16, np.float32, np.float64))
    return next(x for x in small if np.array_equal(x, array))


def main():
    """Write the file."""
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    rng = np.random.default_rng(20250212)
    cases, arrays, entries = [], {}, {}
    for source in (published_cases(), point_cases(rng), activation_cases(rng), thin_cases(rng)):
        for case, fields, dtype, margin in source:
            fields = {name: smallest(name, array) for name, array in fields.items()}
            for name, array in sorted(fields.items()):
                content = array.dtype.str, array.shape, array.tobytes()
                fields[name] = entries.setdefault(content, f"{len(cases)}_{name}")  # once each
                arrays[fields[name]] = array
            described = {"dtype": np.dtype(dtype).name, "margin": margin, "fields": fields}
            cases.append(case | described)
    np.savez_compressed(output, cases=np.array(json.dumps(cases)), **arrays)
    print(f"{len(cases)} cases, {output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
