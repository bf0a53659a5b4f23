"""`Kernel`: a kernel and its parameters, as the catalogue makes it and the bodies read it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray

from thinformer.kernels.phi import STEIN
from thinformer.support import checks

# the scale of a kernel that has not seen its points, as a word
MEDIAN: Literal["median"] = "median"
SCALED_MEDIAN: Literal["scaled median"] = "scaled median"
COVARIANCE: Literal["covariance"] = "covariance"


class Labels(NamedTuple):
    """Labels of the points: k(x, x') becomes k(x, x') (squared k(x, x') + constant + <y, y'>).

    values : (n, e) float64, the labels y of n points, row by row
    """

    values: NDArray
    constant: float
    squared: float


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel and its parameters; made by the functions of `thinformer.kernels`.

    ``a + b`` is the sum of two kernels, ``2.5 * a`` is one times a positive number.

    Attributes
    ----------
    name : str
        The name in lists and messages.
    tag : int
        The integer that the compiled bodies branch on.
    scale : float, tuple of floats, or str
        The factor of the points, 1 / bandwidth up to a constant: one number, or one a dimension. A
        word, "median", "scaled median" or "covariance", stands for a bandwidth that `thin`, `mmd`
        and `compare` take from the points.
    constant : float
        Parameter of phi.
    degree : float
        Parameter of phi.
    coefficients : tuple of floats
        Parameters of a kernel of another form.
    weight : float
        The factor of the kernel.
    terms : tuple of Kernel
        The kernels of a sum, or none.
    companion : object
        What a kernel needs besides the points: the scores of a Stein kernel, a user's function, a
        Gram matrix, or None.
    labels : Labels, optional
        What the kernel is multiplied by; made by `with_labels`.
    """

    name: str
    tag: int
    scale: float | tuple[float, ...] | str = 1.0
    constant: float = 0.0
    degree: float = 1.0
    coefficients: tuple[float, ...] = ()
    weight: float = 1.0
    terms: tuple[Kernel, ...] = ()
    companion: Any = field(default=None, repr=False)
    labels: Labels | None = field(default=None, repr=False)

    @property
    def summands(self) -> tuple[Kernel, ...]:
        """The kernels of the sum; the kernel itself if it is no sum."""
        return self.terms or (self,)

    def __add__(self, other: Kernel) -> Kernel:
        if not isinstance(other, Kernel):
            return NotImplemented
        terms = self.summands + other.summands
        if any(term.tag >= STEIN for term in terms):
            raise ValueError("a sum takes no Stein kernel and no kernel of your own")
        if self.labels or other.labels:
            raise ValueError("a sum takes no kernel with labels; use with_labels(a + b, labels)")
        return Kernel("sum", terms[0].tag, terms=terms)

    def __mul__(self, factor: float) -> Kernel:
        factor = checks.positive("factor", factor)
        terms = tuple(factor * term for term in self.terms)
        labels = self.labels and self.labels._replace(squared=self.labels.squared / factor)
        return replace(self, weight=self.weight * factor, terms=terms, labels=labels)

    __rmul__ = __mul__

    def __radd__(self, other: int) -> Kernel:
        return self if other == 0 else NotImplemented  # what ``sum`` begins with
