"""Cases for the page that runs the algorithm in a browser: inputs, draws, what the package keeps.

A case is a dictionary that JSON can hold, with one of the kinds of
`thinformer.measuring.validate`: "halve", "points" or "attention", the last with one head each. The
page computes in float64, and has neither KT-SPLIT nor KT-SWAP: recorded cases in float32 and those
of `thin` are left out.
"""

from typing import NamedTuple

import numpy as np

from thinformer import attention, kernel_halve, kernels, kh_compress
from thinformer.data import installed_activations, load_activations, load_vectors
from thinformer.halving.draws import seed_from


class Case(NamedTuple):
    """What a body gets, and the positions that are right."""

    name: str
    given: dict
    expected: list


def recorded():
    """The cases of ``thinformer validate``, which has the golden vectors."""
    for number, (case, fields) in enumerate(load_vectors()):
        there = case.get("activations") in (None, *installed_activations())
        if case["dtype"] == "float64" and case["kind"] != "thin" and there:
            for rest, given, expected in OF_KIND[case["kind"]](case, fields):
                yield Case(f"recorded {number} {case['family']} {rest}", given, expected.tolist())


def of_halving(case, fields):
    """A Gram matrix and its draws."""
    given = {"kind": "halve", "delta": case["delta"], "K": fields["K"].astype(float).tolist()}
    yield case["id"], given | {"draws": draws_of(fields)}, fields["indices"]


def of_points(case, fields):
    """Points, a kernel and a seed."""
    points = fields["points"].astype(float).tolist()
    given = {"kind": "points", "kernel": case["kernel"], "bandwidth": 1.0, "points": points}
    settings = {"size": case["size"], "delta": 0.5, "seed": str(case["seed"])}
    yield case["kernel"], given | {"settings": settings}, fields["indices"]


def of_attention(case, fields):
    """Keys and values, a head a case."""
    if "activations" in case:
        fields = fields | load_activations(case["activations"])[case["layer"]]
    settings = {name: case[name] for name in ("g", "size", "delta", "pre_thin")}
    B, _, H, _ = fields["key"].shape
    for b, h in np.ndindex(B, H):
        given = head_of(fields["key"], fields["value"], b, h)
        if "seed" in case:
            drawn = {"seed": str(case["seed"]), "head": h}
        else:
            drawn = {"draws": draws_of(fields, (B, H), b, h)}
        yield f"{b} {h}", given | {"settings": settings | drawn}, fields["indices"][b, h]


OF_KIND = {"halve": of_halving, "points": of_points, "attention": of_attention}


def head_of(key, value, b, h):
    """The rows of one head."""
    key, value = (array[b, :, h].astype(float).tolist() for array in (key, value))
    return {"kind": "attention", "key": key, "value": value}


def draws_of(fields, stack=(), *place):
    """The draws that a case holds as arrays, of one problem of its stack."""
    rounds = range(sum(name.startswith("uniforms") for name in fields))

    def of(name):
        arrays = [fields[f"{name}{i}"] for i in rounds]
        return [np.broadcast_to(x, (*stack, x.shape[-1]))[place].tolist() for x in arrays]

    return {"uniforms": of("uniforms"), "coins": of("coins"), "strata": None}


def computed():
    """Other cases, that the package computes from a seed: n, sizes, deltas, kernels, heads."""
    rng = np.random.default_rng(11)
    for number, (S, delta) in enumerate([(2, 1.0), (5, 0.5), (8, 0.1), (64, 0.5), (129, 0.01)]):
        x = rng.normal(size=(S, 2))
        K = np.exp(-((x[:, None] - x) ** 2).sum(-1))
        given = {"kind": "halve", "K": K.tolist(), "delta": delta, "seed": drawn_from(number)}
        kept = kernel_halve(K, delta=delta, rng=number)
        yield Case(f"halve {S} {delta}", given, kept.tolist())
    settings = [{"size": 1}, {"size": 40}, {"size": 128}, {"g": 0}, {"g": 1}, {"g": 9}]
    names = ["gaussian", "laplace", "matern", "inverse_multiquadric", "exponential", "energy"]
    for number, (S, chosen, kernel) in enumerate(
        zip([1, 100, 256, 500, 1024, 300], settings, names, strict=True)
    ):
        points, delta = rng.normal(size=(S, 1 + number % 3)), (1.0, 0.5, 0.01)[number % 3]
        made = getattr(kernels, kernel)(bandwidth=0.7)
        kept = kh_compress(points, **chosen, delta=delta, kernel=made, rng=number)
        given = {"kind": "points", "kernel": kernel, "bandwidth": 0.7, "points": points.tolist()}
        drawn = {"delta": delta, "seed": drawn_from(number)}
        yield Case(f"points {S} {kernel}", given | {"settings": chosen | drawn}, kept.tolist())
    for number, chosen in enumerate([{"g": 0}, {"g": 2}, {"size": 60}]):
        key, value = rng.normal(size=(2, 1, 300, 2, 8)) * (1, 1e3, 1e-3)[number]
        found = attention(key, key, value, **chosen, rng=number, return_indices=True).indices
        for h in range(2):
            drawn = {"seed": drawn_from(number), "head": h}
            given = head_of(key, value, 0, h) | {"settings": chosen | drawn}
            yield Case(f"attention {chosen} head {h}", given, found[0, h].tolist())


def drawn_from(rng):
    """The seed of the draws that functions make of ``rng``, as text: JSON has no such integers."""
    return str(seed_from(rng))
