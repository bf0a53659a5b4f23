"""The threads that run compiled loops: each process makes its own when it needs them."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from threading import Condition, Lock, get_ident

from thinformer.support import checks
from thinformer.support.progress import ignore

THREAD_FLOPS = 5e6  # operations for which a thread is started: some 50 microseconds
PIECE_FLOPS = 1e10  # operations of a range at most, if one unit is not larger
SHARES = 4  # ranges a thread, if there are enough units
CGROUP = Path("/sys/fs/cgroup/cpu.max")

Team = Callable[[Callable[[], None], int], None]

_threads: int | None = None
_pool: tuple[int, int, ThreadPoolExecutor] | None = None  # process id, threads, executor
_team: ContextVar[Team | None] = ContextVar("team", default=None)


def available_cores() -> int:
    """Return the cores that this process may use, at most a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.ceil(min(cores or 1, _quota(CGROUP))))


@functools.cache
def _quota(path: Path) -> float:
    """Return the cores that a control group grants, from its cpu.max, such as "200000 100000"."""
    try:
        quota, period = path.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no control groups, or "max": no limit
        return math.inf


def get_num_threads() -> int:
    """Return the number of threads that kernels run on.

    Unless `set_num_threads` set it, it is the number of cores that this process may use, and at
    most the environment variables NUMBA_NUM_THREADS and OMP_NUM_THREADS.

    Returns
    -------
    int
    """
    if _threads is not None:
        return _threads
    names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")
    # OMP_NUM_THREADS may be a list, one number for each level of nesting
    limits = [os.environ.get(name, "").split(",")[0].strip() for name in names]
    return min([available_cores(), *(int(n) for n in limits if n.isdigit() and int(n) > 0)])


def set_num_threads(threads: int | None) -> None:
    """Set the number of threads that kernels run on.

    The result of a computation does not depend on it.

    Parameters
    ----------
    threads : int or None
        None returns to the default; see `get_num_threads`.

    Raises
    ------
    ValueError
        The argument is neither a positive integer nor None.
    """
    global _threads
    _threads = None if threads is None else checks.integer("threads", threads, 1)


@contextmanager
def on(team: Team | None) -> Iterator[None]:
    """Run kernels on another library's threads, the team; on this module's own if it is None.

    A team is a function of a task and a number of threads. It runs the task on so many threads,
    the calling thread among them, and returns when all have finished.
    """
    token = _team.set(team)
    try:
        yield
    finally:
        _team.reset(token)


def run(
    task: Callable[[int, int], Iterable[float] | None],
    units: int,
    flops: float,
    done: Callable[[float], None] = ignore,
) -> None:
    """Call task(first, last) over consecutive ranges that cover the units, on several threads.

    The calling thread works too. To hand work to a thread costs some 30 microseconds, so each
    thread gets at least as much work. Ranges are small, and a thread that has finished one takes
    the next. So a thread whose core is busy, for example with another library's spinning threads,
    takes fewer; and a thread that is busy with another caller's work is not waited for. An
    interrupt or an error stops all threads at the end of their ranges; if the task is a generator,
    where it yields how many units of its range are done. A unit is never split.

    done(fraction) is called on the calling thread, with the part of the units that is done: after
    each range of this thread, where its task yields, and at the end.
    """
    threads = max(1, min(get_num_threads(), units, int(flops / THREAD_FLOPS)))
    share = units if threads == 1 else units // (SHARES * threads)
    size = max(1, min(share, int(units * PIECE_FLOPS / max(flops, 1))))
    starts = iter(range(0, units, size))
    state = Condition()
    active, closed, stopped = 0, False, False
    errors: list[BaseException] = []
    add = _counter(units, done)

    def work() -> None:
        nonlocal active, stopped
        with state:
            if closed:  # this thread was busy until now, and all work is done
                return
            active += 1
        try:
            while not stopped:
                with state:
                    start = next(starts, None)
                if start is None:
                    break
                end, before = min(start + size, units), 0.0
                for part in task(start, end) or ():
                    if stopped:
                        break
                    add(part - before)
                    before = part
                else:
                    add(end - start - before)
        except BaseException as error:
            stopped = True
            errors.append(error)
        finally:
            with state:
                active -= 1
                state.notify_all()

    try:
        (_team.get() or _own_team)(work, threads) if threads > 1 else work()
    except BaseException:
        stopped = True
        raise
    finally:
        with state:
            closed = True
            state.wait_for(lambda: active == 0)  # results are shared memory
    if errors:
        raise errors[0]
    done(1.0)


def _counter(units: int, done: Callable[[float], None]) -> Callable[[float], None]:
    """Return add(part) for all threads; that of the calling thread also tells how much is done."""
    caller, lock, finished = get_ident(), Lock(), 0.0

    def add(part: float) -> None:
        nonlocal finished
        with lock:
            finished += part
        if part and finished < units and get_ident() == caller:
            done(finished / units)

    return add


def _own_team(work: Callable[[], None], threads: int) -> None:
    """Run work on this thread and on others, if they can start; return when this thread is done."""
    for _ in range(threads - 1):
        try:
            _executor(threads - 1).submit(work)
        except RuntimeError:  # no more threads, or the interpreter is shutting down
            break
    work()


def _executor(threads: int) -> ThreadPoolExecutor:
    """Return the process's pool; a forked child cannot use its parent's and makes its own."""
    global _pool
    if _pool is None or _pool[0] != os.getpid() or _pool[1] < threads:
        _pool = (os.getpid(), threads, ThreadPoolExecutor(threads, "thinformer"))
    return _pool[2]
