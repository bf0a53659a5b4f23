"""Kernel values of two points at a time: a thread has its own two points, and shares nothing.

Tiles (`values`) read a point once for many values. Here a thread reads both points for one value:
where one point meets all others, or each point itself.
"""

from __future__ import annotations

from typing import Any

from thinformer.cuda.jit import device_function
from thinformer.cuda.tiles import sobolev_factor
from thinformer.cuda.values import CONSTANT, DEGREE, FIRST, WEIGHT, Term, Variant
from thinformer.kernels import phi

stein_of = device_function(phi.stein_of)


def make_value(variant: Variant) -> Any:
    """Return the function that computes the kernel value of two points.

    The function's arguments::

        window  (span,) the numbers of the points
        place  where row 0 is in the window, the strides of rows and columns, and the columns
        x, y  the rows of the two points
        parameters, scales  of the kernel, as in `halve.make_kernel`
    """
    if variant.form == "entries":
        return make_entry(variant)
    if variant.form == "function":
        return make_call(variant)
    if variant.terms[0].of == "stein":
        return make_stein(variant)
    value = nothing
    for i, term in enumerate(variant.terms):
        value = make_next_term(value, i, term, variant)
    return value


@device_function
def nothing(window, place, x, y, parameters, scales):
    """Return the sum of no terms."""
    return window.dtype.type(0)


@device_function
def add_product(total, x, y, scale, coefficients):
    """Add the product of one column, in units of its bandwidth."""
    return total + (x * scale) * (scale * y)


@device_function
def add_square(total, x, y, scale, coefficients):
    """Add the squared difference of one column, in units of its bandwidth."""
    difference = scale * (x - y)
    return total + difference * difference


@device_function
def multiply_factor(total, x, y, scale, coefficients):
    """Multiply by the Sobolev kernel's factor of one column."""
    return total * sobolev_factor(x, y, coefficients)


def make_next_term(before: Any, number: int, term: Term, variant: Variant) -> Any:
    """Return the function that adds term `number` to the terms that `before` adds up."""
    add = {"products": add_product, "distances": add_square, "sobolev": multiply_factor}[term.of]
    load, of_sum = device_function(variant.load), device_function(term.phi)
    dtype = variant.dtype
    NOTHING = dtype(term.of == "sobolev")

    @device_function
    def value(window, place, x, y, parameters, scales):
        start, row, column, dim = place
        at, other, total = start + x * row, start + y * row, NOTHING
        for d in range(dim):
            x_d, y_d = load(window[at + d * column]), load(window[other + d * column])
            scale, coefficients = scales[number, d], parameters[number, FIRST:]
            total = add(total, dtype(x_d), dtype(y_d), scale, coefficients)
        found = of_sum(total, parameters[number, CONSTANT], parameters[number, DEGREE])
        return before(window, place, x, y, parameters, scales) + parameters[number, WEIGHT] * found

    return value


def make_stein(variant: Variant) -> Any:
    """Return the function for the Stein kernel; scores are in the columns behind the points."""
    load, dtype = device_function(variant.load), variant.dtype
    ZERO = dtype(0)

    @device_function
    def number_at(window, place):
        return dtype(load(window[place]))

    @device_function
    def value(window, place, x, y, parameters, scales):
        start, row, column, dim = place
        at, other = start + x * row, start + y * row
        largest = distance = spread = products = scores = divergence = ZERO
        for d in range(dim):
            largest = max(largest, scales[0, d])
        for d in range(dim):
            s = number_at(window, at + (dim + d) * column)
            t = number_at(window, other + (dim + d) * column)
            x_d, y_d = number_at(window, at + d * column), number_at(window, other + d * column)
            difference = x_d - y_d
            inverse, share = scales[0, d] * scales[0, d], scales[0, d] / largest
            square = inverse * difference * difference
            distance += square
            spread += share * share * square
            products += inverse * difference * (s - t)
            scores += s * t
            divergence += inverse
        constant, degree = parameters[0, CONSTANT], parameters[0, DEGREE]
        found = stein_of(distance, spread, products, scores, divergence, constant, degree)
        return parameters[0, WEIGHT] * found

    return value


def make_entry(variant: Variant) -> Any:
    """Return the function for the entries of a Gram matrix; a point is a row and a column of it."""
    load = device_function(variant.load)

    @device_function
    def value(window, place, x, y, parameters, scales):
        start, row, column, _ = place
        return load(window[start + x * row + y * column])

    return value


def make_call(variant: Variant) -> Any:
    """Return the function that calls a user's function; the columns of a point are neighbours."""
    function, number = variant.function, variant.dtype

    @device_function
    def value(window, place, x, y, parameters, scales):
        start, row, _, dim = place
        at, other = start + x * row, start + y * row
        found = function(window[at : at + dim], window[other : other + dim])
        return parameters[0, WEIGHT] * number(found)

    return value
