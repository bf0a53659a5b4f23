"""`TwoSampleResult`: what a two-sample test found, kernel by kernel; it prints as a table."""

from __future__ import annotations

from typing import Any, NamedTuple

from thinformer.support.table import aligned


class KernelResult(NamedTuple):
    """What a two-sample test found under one kernel.

    Attributes
    ----------
    name : str
        The kernel.
    bandwidth : float or None
        Its bandwidth, where the test chose it.
    mmd2 : float
        The squared MMD between the samples, from points in different bins. It is an estimate of
        that between the distributions with hardly any bias, so it may be negative. The method
        "landmarks" sees a part of it.
    statistic : float
        `mmd2` minus its mean over the permutations, in standard deviations of these.
    pvalue : float
        That of the test with this kernel alone.
    """

    name: str
    bandwidth: float | None
    mmd2: float
    statistic: float
    pvalue: float


class TwoSampleResult(NamedTuple):
    """The result of `two_sample_test`; it prints as a table.

    Attributes
    ----------
    statistic : float
        The largest of the kernels' statistics.
    pvalue : float
        The share of the permutations, the samples as they are among them, whose statistic is not
        smaller.
    level : float
        The p-value up to which the test rejects.
    kernels : tuple of KernelResult
    method : str
        "exact", "landmarks" or "compress".
    sizes : (int, int)
        Points of x and of y that were used.
    bins : (int, int)
        Bins of x and of y.
    permutations : int
    least : float
        The smallest p-value that so few bins and permutations can have, but for the luck of the
        draw of permutations.
    """

    statistic: float
    pvalue: float
    level: float
    kernels: tuple[KernelResult, ...]
    method: str
    sizes: tuple[int, int]
    bins: tuple[int, int]
    permutations: int
    least: float

    @property
    def reject(self) -> bool:
        """Whether the samples are too different for one distribution: pvalue <= level."""
        return self.pvalue <= self.level

    def __str__(self) -> str:
        different = "differ" if self.reject else "may be equal"
        if not self.reject and self.least > self.level:
            different += f", or differ: a p-value can hardly be below {self.least:.3g}"
        cells = [("kernel", "bandwidth", "MMD^2", "deviations", "p-value")]
        for each in self.kernels:
            bandwidth = "-" if each.bandwidth is None else f"{each.bandwidth:.4g}"
            cells.append(
                (each.name, bandwidth, f"{each.mmd2:.2e}", f"{each.statistic:.1f}",
                 f"{each.pvalue:.3g}")
            )  # fmt: skip
        return (
            f"p-value {self.pvalue:.3g}, level {self.level:g}: the distributions {different}\n"
            f"{self.sizes[0]:,} and {self.sizes[1]:,} points in {self.bins[0]} and {self.bins[1]} "
            f"bins, {self.permutations} permutations, method {self.method}\n{aligned(cells, (0,))}"
        )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))
