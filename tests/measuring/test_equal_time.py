"""Errors at equal time: interpolated where a curve reaches, bounded where it does not."""

import pytest

from thinformer.measuring.equal_time import at_equal_time, curve, ratios
from thinformer.measuring.quality import BEST, EXACT, PLAIN, Line

OTHER = [(1.0, 0.8), (4.0, 0.2), (16.0, 0.1)]


def line(method, kept, error, seconds):
    return Line("text", method, kept, 512, error, 0.0, seconds, None, {})


def test_curves_are_joined_in_the_logarithms():
    # at 2 s, half way between 1 and 4, the other's error is the root of 0.8 times 0.2
    assert at_equal_time((2.0, 0.1), OTHER, 100.0) == (pytest.approx(0.1 / 0.4), "")
    assert at_equal_time((8.0, 0.1), OTHER, 100.0) == (pytest.approx(0.1 / 0.02**0.5), "")
    for seconds, error in OTHER:
        assert at_equal_time((seconds, 0.5), OTHER, 100.0) == (pytest.approx(0.5 / error), "")


def test_curves_are_never_extended():
    assert at_equal_time((0.5, 0.4), OTHER, 100.0) == (pytest.approx(0.5), "<")
    assert at_equal_time((32.0, 0.3), OTHER, 100.0) == (pytest.approx(3.0), ">")


@pytest.mark.parametrize("seconds", [20.0, 50.0])
def test_exact_attention_ends_every_curve(seconds):
    assert at_equal_time((seconds, 0.3), OTHER, 20.0) == (None, "exact")


def test_what_is_slower_than_exact_attention_is_on_no_curve():
    assert at_equal_time((6.0, 0.3), OTHER, 8.0) == (pytest.approx(0.3 / 0.2), ">")
    # a method that is nowhere faster is compared with its fastest size
    assert at_equal_time((0.2, 0.4), OTHER, 0.5) == (pytest.approx(0.5), "<")


def test_a_method_without_error_is_exact_attention():
    other = [(1.0, 0.8), (4.0, 0.0)]
    assert at_equal_time((2.0, 0.4), other, 100.0) == (pytest.approx(0.5), ">")
    assert at_equal_time((5.0, 0.4), other, 100.0) == (None, "exact")
    assert at_equal_time((2.0, 0.4), [(4.0, 0.0)], 100.0) == (None, "exact")


def test_a_curve_holds_what_is_nearer_than_all_faster_points():
    points = [(4.0, 0.2), (1.0, 0.8), (2.0, 0.9), (3.0, 0.8), (5.0, 0.3), (6.0, 0.1)]
    assert curve(points, 100.0) == [(1.0, 0.8), (4.0, 0.2), (6.0, 0.1)]
    assert curve(points, 5.5) == [(1.0, 0.8), (4.0, 0.2)]
    assert curve(points, 0.5) == [(1.0, 0.8)]


def test_every_method_with_every_other():
    """But not exact attention, the best rank, or a method that keeps all keys."""
    lines = [
        line(EXACT, 512, 0.0, 10.0),
        line(PLAIN, 16, 0.8, 1.0), line("merged keys", 16, 0.4, 1.0), line(BEST, 16, 0.1, None),
        line(PLAIN, 64, 0.2, 4.0), line("merged keys", 64, 0.1, 12.0),
        line(PLAIN, 512, 0.0, 9.0),
    ]  # fmt: skip
    found = {(x.method, x.kept, x.other): (x.ratio, x.bound) for x in ratios(lines)}
    assert found == {
        (PLAIN, 16, "merged keys"): (pytest.approx(2.0), ""),
        (PLAIN, 64, "merged keys"): (pytest.approx(0.5), ">"),
        ("merged keys", 16, PLAIN): (pytest.approx(0.5), ""),
        ("merged keys", 64, PLAIN): (None, "exact"),
    }
    assert {x.input for x in ratios(lines)} == {"text"}
