"""``thinformer test``: whether the rows of two files come from one distribution."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from thinformer.commands.options import add_csv, can_plot
from thinformer.commands.streams import print_outcome, terminable

NOTES = """\
The test. The squared MMD between A and B is compared with that after random exchanges of bins of
rows between them. A p-value of at most --level says that the distributions differ. By default the
test looks at six bandwidths, 1/16 to 2 times the median distance between rows, and has one p-value
for all. The rows must be independent.

Columns. A and B have the same columns, in any order and in files of any formats. Compared are all
columns of numbers, but not those of a sampler (chain, iteration, draw, .chain, ..., and all that
end in __, as lp__), an index (a column without a name, or whole numbers that increase and are named
id, index or row, in either file), and columns that are constant and equal in both. The command says
what it leaves out; --columns takes any. Each column is divided by its robust standard deviation in
both files together; --no-standardize takes the columns in their units, and so does a --bandwidth in
numbers. How files are read: see `thinformer thin --help`.

Draws of a sampler. Draws of a Markov chain are not independent, so the test rejects too often.
Where a column is of a sampler, or the file is an ArviZ posterior, the command prints the effective
sample size (ESS), and a warning where it is below half of the rows. Take every k-th draw, with k
about 2 * rows / ESS: `thinformer thin A -o OUT --method standard --size N` writes N rows at even
distances. Do not choose the rows by another method of `thin`: these are not independent either.

Plot. --plot draws the witness function of the MMD: positive where A has more rows, negative where B
has more. Its kernel is the one with the largest statistic.

Seed. The same files, options and --seed give the same p-value, on any number of threads.

exit status: 0 the test was done, whatever it found; 1 done, but the result could not be printed;
2 an error, no file written; 130, 129 or 143 interrupted or ended

examples:
  thinformer test real.csv generated.csv --seed 1
  thinformer test before.parquet after.parquet --columns age,income --plot where.png
"""


def add_parser(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "test",
        help="test whether the rows of two files come from one distribution",
        description="Test whether the rows of two files come from one distribution, by their MMD.",
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for metavar, dest in (("A", "first"), ("B", "second")):
        parser.add_argument(
            dest, metavar=metavar, type=Path,
            help=".csv, .tsv, .parquet, .npy, .npz or .nc file, or a folder of .parquet files",
        )  # fmt: skip
    _add_columns(parser)
    _add_test(parser)
    parser.add_argument(
        "--plot", type=Path, metavar="FILE",
        help="also draw where the samples differ, in the first four dimensions (.png, .svg, .pdf)",
    )  # fmt: skip
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="also write what was found, in JSON"
    )
    add_csv(parser)
    parser.set_defaults(run=run)


def _add_columns(parser: argparse.ArgumentParser) -> None:
    """Add what is compared."""
    parser.add_argument(
        "--columns", metavar="X,Y",
        help="columns to compare: names, or in .npy places, the first 0 (default: all columns of"
        " numbers but a sampler's, an index and constants, see below)",
    )  # fmt: skip
    parser.add_argument(
        "--standardize", action=argparse.BooleanOptionalAction, default=None,
        help="divide each of these columns by its robust standard deviation, the distance between"
        " its quartiles over 1.349 (default: yes, unless --bandwidth gives numbers or a kernel is"
        " sobolev)",
    )  # fmt: skip
    parser.add_argument(
        "--weights", metavar="COLUMN",
        help="column with the weights of the rows; a file without it has rows of equal weight",
    )  # fmt: skip


def _add_test(parser: argparse.ArgumentParser) -> None:
    """Add how the samples are tested."""
    parser.add_argument(
        "--kernel", default="gaussian", metavar="K", help="gaussian (rbf), laplace, matern, energy,"
        " inverse_multiquadric (imq), rational_quadratic, linear, polynomial, exponential or"
        " sobolev, or several, as gaussian,energy (default: gaussian)",
    )  # fmt: skip
    parser.add_argument(
        "--bandwidth", default="auto", metavar="B",
        help="bandwidth of the kernels: a number, or one for each column in their order (1,2.5), or"
        " median, the median distance between rows, or auto, six of them (default: auto)",
    )  # fmt: skip
    parser.add_argument(
        "--method", default="auto", help="exact (quadratic time), landmarks (linear), compress or"
        " auto, which is exact for up to 2048 rows together, else landmarks (default: auto)",
    )  # fmt: skip
    parser.add_argument(
        "--bins", type=int, default=64, metavar="N", help="bins of rows that are exchanged, of both"
        " files together, 4 to 1024 (default: 64)",
    )  # fmt: skip
    parser.add_argument(
        "--permutations", type=int, default=999, metavar="N",
        help="random exchanges; the smallest p-value is 1 / (N + 1) (default: 999)",
    )  # fmt: skip
    parser.add_argument(
        "--level", type=float, default=0.05, metavar="L",
        help="p-values up to it say that the distributions differ (default: 0.05)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, help="the same seed gives the same p-value (default: a fresh one)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Test the samples, and print what was found."""
    from thinformer.support.names import printable
    from thinformer.support.progress import progress

    try:
        with terminable(), progress() as tell:
            tell("loading", None)
            from thinformer.files import two_sample

            if arguments.plot is not None:
                can_plot(arguments.plot)
            job = _job_of(arguments)
            tested = two_sample.run(job, tell)
    except MemoryError as error:
        raise ValueError(f"not enough memory: {printable(error)}") from error
    except KeyboardInterrupt:
        print("thinformer test: interrupted; nothing was written", file=sys.stderr)
        return 130
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise ValueError(printable(error)) from error
    except Exception as error:  # of a library, about a file that nobody thought of
        raise ValueError(printable(f"{type(error).__name__}: {error}")) from error
    for warning in two_sample.format_warnings(tested) if sys.stderr is not None else []:
        print_outcome(f"thinformer test: warning: {warning}", sys.stderr, "")
    lost = "thinformer test: done, but the result is not printed"
    return print_outcome(two_sample.format_tested(job, tested), sys.stdout, lost)


def _job_of(arguments: argparse.Namespace) -> Any:
    """The request that the arguments state."""
    from thinformer.files.job import bandwidth_of, columns_of, delimiter_of
    from thinformer.files.two_sample import TwoSampleJob, standardized_by_default

    kernels = arguments.kernel.split(",")
    bandwidth = bandwidth_of(arguments.bandwidth, ("auto", "median"))
    standardize = arguments.standardize
    if standardize is None:
        standardize = standardized_by_default(kernels, bandwidth)
    return TwoSampleJob(
        sources=(arguments.first, arguments.second),
        columns=columns_of(arguments.columns),
        weights=arguments.weights,
        kernels=kernels,
        bandwidth=bandwidth,
        standardize=standardize,
        method=arguments.method,
        bins=arguments.bins,
        permutations=arguments.permutations,
        level=arguments.level,
        seed=arguments.seed,
        plot=arguments.plot,
        report=arguments.report,
        delimiter=delimiter_of(arguments.delimiter),
        comment=arguments.comment,
    )
