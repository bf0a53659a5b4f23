"""``thinformer thin``: choose the rows of files that represent them best, and write them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from thinformer.commands.options import add_csv, can_plot
from thinformer.commands.streams import print_outcome, silence, terminable

NOTES = """\
Formats. Rows of .csv and .tsv are written as they stand in IN, byte for byte; blank lines are no
rows. .parquet keeps its schema; a folder of .parquet files is one table, and a folder in it such as
chain=1 gives a column. .npz holds arrays of one length; where --columns says what to thin, arrays
of other lengths are copied. .nc holds a dataset with one shared dimension, or an ArviZ posterior,
whose chosen draws become one chain that ArviZ takes; `source_chain` and `source_draw` say where
they were. .csv and .tsv may be compressed, and OUT is as its name says: .gz, .bz2, .xz, .zst. Rows
are written in their order in IN. --row-numbers counts from 0 the rows that are read, and rows of a
posterior chain after chain. Existing files of OUT, --plot, --curve and --report are
overwritten.

Several files. They have the same columns, and are thinned as one table, in their order. OUT gets a
column chain, 1, 2, ..., by the file, unless there is one. .csv, .tsv and .parquet only.

Columns. The distance is computed on all columns of numbers, but not on those of a sampler (chain,
iteration, draw, .chain, ..., and all that end in __, as lp__), an index (a column without a name,
or whole numbers that increase and are named id, index or row), and columns that are constant, where
all rows are in one chunk. The command says what it leaves out; --columns takes any. All columns are
written. Each column is divided by its robust standard deviation, the distance between its quartiles
over 1.349; --no-standardize takes the columns in their units, and so does a --bandwidth in numbers.
The chosen rows have equal weights: do not apply the column of --weights again.

Size. auto chooses as few rows as are worth E independent draws, where E is the effective sample
size (ESS) of IN: the squared MMD of the chosen rows to all rows is at most the expected one of E
independent draws. Rows of a sampler (there is a column of it, or IN are several files, or an ArviZ
posterior) are taken in their order, and E is the smallest ESS of the columns; --ess takes another.
--curve draws this error by size. All rows must be in one chunk: a larger --chunk-rows helps.
Quantiles may need more rows: see their error in what the command prints.

Comments of CSV. Where the first line begins with #, all lines that do are comments. They are not
written. A comment is the header if it has a name for each column, the first row below it has a
number, and no other header follows. If only later lines begin with #, say --comment '#'.

Headers of CSV. A first row that is all numbers is a row, unless it is 0,1,2,...: pandas writes such
names. Columns without names are 0, 1, ... for --columns, and OUT has no header either. Headers that
are repeated among the rows, as in joined files, are left out and counted.

Warm-up. Where a comment of CmdStan says save_warmup = 1, rows above "Adaptation terminated" are
left out and counted. Of a run without adaptation (engaged = 0), which has no such line, as many
rows are left out as num_warmup and thin say.

Seed. The same IN, options, --seed and --chunk-rows choose the same rows, on any number of threads.

MMD. The command prints the MMD of the chosen rows to all rows. Where there are many rows, 20000 of
them give an estimate without bias. Where these are too few to tell the MMD from 0, the command
prints a bound: "below" a number.

Memory. .csv, .tsv and .parquet are read in chunks. If there are several, each chunk is thinned to a
weighted coreset of at least c = max(2^g * size, 4096) rows. Coresets are merged and halved, and
those left at the end are thinned to the size; "median" and the scales are then computed on the
first chunk. At most two chunks and 6 * sqrt(chunks) * c rows are in memory: about

    300 MB + (2 * chunk-rows + 6 * sqrt(chunks) * c) * (120 + 24 * columns used + bytes of a row)

.npy is mapped into memory; its columns are copied if only some are used or if they are
standardised. .npz and .nc are read completely.

Scheduler. --scheduler hands .parquet files to Dask: to a cluster at tcp://HOST:PORT, or to threads
here (threads). The files are where all workers see them under the same path, and workers have
thinformer and pyarrow installed. The rows are those that are chosen without it. A task holds a row
group, a chunk or coresets. What is written, the rows to compare with and two chunks come to this
machine. It excludes --size auto and --curve. What it needs:

    pip install dask distributed

exit status: 0 done; 1 files written, but not the summary; 2 an error, no file written; 130, 129 or
143 interrupted or ended; 141 nobody reads standard output

examples:
  thinformer thin draws.csv -o chosen.csv --size 500 --columns mu,tau --seed 1
  thinformer thin run-1.csv run-2.csv -o chosen.csv --size 500 --plot chosen.png
"""


def add_parser(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "thin",
        help="choose the rows of files that represent them best",
        description="Choose the rows of files that represent them best, and write them.",
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="IN", type=Path, nargs="+",
        help=".csv, .tsv, .parquet, .npy, .npz or .nc file, or several; - reads standard input",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--out", required=True, type=Path, metavar="OUT",
        help="file of the same ending, overwritten; - writes CSV to standard output",
    )  # fmt: skip
    parser.add_argument(
        "--size", required=True, metavar="N",
        help="rows to choose; auto chooses as few as add no more error than IN has, see below",
    )  # fmt: skip
    parser.add_argument(
        "--ess", type=float, metavar="E",
        help="effective sample size of IN, for --size auto and --curve (default: from the"
        " autocorrelation of a sampler's draws; rows of other files count as independent)",
    )  # fmt: skip
    _add_columns(parser)
    _add_methods(parser)
    _add_outputs(parser)
    _add_formats(parser)
    parser.set_defaults(run=run)


def _add_columns(parser: argparse.ArgumentParser) -> None:
    """Add what the distance between rows is computed on."""
    parser.add_argument(
        "--columns", metavar="A,B",
        help="columns that the distance is computed on: names, or in .npy places, the first 0"
        " (default: all columns of numbers but a sampler's, an index and constants, see below)",
    )  # fmt: skip
    parser.add_argument(
        "--standardize", action=argparse.BooleanOptionalAction, default=None,
        help="divide each of these columns by its robust standard deviation, the distance between"
        " its quartiles over 1.349 (default: yes, unless --bandwidth gives numbers or the kernel is"
        " sobolev)",
    )  # fmt: skip
    parser.add_argument(
        "--weights", metavar="COLUMN",
        help="column with the weights of the rows of IN; the chosen rows have equal weights",
    )  # fmt: skip


def _add_methods(parser: argparse.ArgumentParser) -> None:
    """Add how rows are chosen."""
    parser.add_argument(
        "--kernel", default="gaussian", help="gaussian (rbf), laplace, matern, energy, "
        "inverse_multiquadric (imq), rational_quadratic, linear, polynomial, exponential or "
        "sobolev (default: gaussian)",
    )  # fmt: skip
    parser.add_argument(
        "--bandwidth", default="median", metavar="B",
        help="bandwidth of the kernel: a number, or one for each column in their order (1,2.5), or"
        " median, the median distance between rows (default)",
    )  # fmt: skip
    parser.add_argument(
        "--method", default="compress++", help="compress++, kernel-thinning (quadratic time), "
        "kh-compress, halving, greedy (quadratic), standard or random (default: compress++)",
    )  # fmt: skip
    parser.add_argument("--g", type=int, default=4, help="oversampling of compress++ (default: 4)")
    parser.add_argument(
        "--delta", type=float, default=0.5, help="failure probability of a halving (default: 0.5)"
    )
    parser.add_argument(
        "--seed", type=int, help="the same seed chooses the same rows (default: a fresh one)"
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    """Add what is written beside the rows."""
    parser.add_argument(
        "--row-numbers", action="store_true",
        help="also write where rows stood in IN: a column, array or coordinate `row`; for .npy the"
        " file OUT.rows.npy",
    )  # fmt: skip
    parser.add_argument(
        "--plot", type=Path, metavar="FILE",
        help="also draw the first four dimensions, rows and coreset (.png, .svg, .pdf)",
    )  # fmt: skip
    parser.add_argument(
        "--curve", type=Path, metavar="FILE",
        help="also draw the error by size, 1, 2, 4, ..., in the unit of --size auto",
    )  # fmt: skip
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="also write what was done, in JSON"
    )


def _add_formats(parser: argparse.ArgumentParser) -> None:
    """Add how IN is read."""
    parser.add_argument(
        "--chunk-rows", type=int, default=2**18, metavar="N",
        help="rows read at once, at least 4096 (default: 262144)",
    )  # fmt: skip
    parser.add_argument(
        "--scheduler", metavar="S",
        help="thin .parquet files on a cluster of Dask, tcp://HOST:PORT, or by its threads here: "
        "threads",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=("csv", "tsv"), help="format of standard input (default: csv)"
    )
    add_csv(parser)


def run(arguments: argparse.Namespace) -> int:
    """Thin the file, and print what was done where no rows are printed."""
    from thinformer.support.names import printable
    from thinformer.support.progress import progress

    chatter = sys.stderr if arguments.out == Path("-") else sys.stdout
    try:
        with terminable(), progress() as tell:
            tell("loading", None)
            from thinformer.files import job, report, thin

            for option in ("plot", "curve"):
                if getattr(arguments, option) is not None:
                    can_plot(getattr(arguments, option), f"--{option}")
            outcome = thin.run(job.job_of(arguments), tell)
    except MemoryError as error:
        raise ValueError(
            f"not enough memory: {printable(error)}; a smaller --chunk-rows takes less"
        ) from error
    except KeyboardInterrupt:
        print("thinformer thin: interrupted; nothing was written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        silence(sys.stdout)
        return 141
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise ValueError(printable(error)) from error
    except Exception as error:  # of a library, about a file that nobody thought of
        raise ValueError(printable(f"{type(error).__name__}: {error}")) from error
    lost = "thinformer thin: the files are written; the summary is not"
    return print_outcome(report.format_outcome(outcome, arguments.out), chatter, lost)
