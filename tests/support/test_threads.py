"""Threads: how many, errors and interrupts in them, and callers that share them."""

import threading

import pytest
from processes import PROBLEM, run


@pytest.mark.slow
def test_many_threads_at_once():
    """Eight Python threads on different problems, each of which would use several threads."""
    run(PROBLEM + """
from concurrent.futures import ThreadPoolExecutor
expected = [work(seed) for seed in range(8)]
with ThreadPoolExecutor(8) as pool:
    for _ in range(5):
        for got, want in zip(pool.map(work, range(8)), expected, strict=True):
            assert np.array_equal(got, want)
""")  # fmt: skip


@pytest.mark.slow
def test_threads_respect_the_environment():
    code = "import thinformer; print(thinformer.get_num_threads())"
    assert run(code, OMP_NUM_THREADS="1") == "1"
    assert run(code, NUMBA_NUM_THREADS="1", OMP_NUM_THREADS="") == "1"
    cores = "from thinformer.support.threads import available_cores; print(available_cores())"
    assert run(code, OMP_NUM_THREADS="nonsense", NUMBA_NUM_THREADS="") == run(cores)


@pytest.mark.slow
def test_an_error_in_a_thread_reaches_the_caller():
    run("""
        import threading
        from thinformer import set_num_threads
        from thinformer.support import threads
        set_num_threads(3)
        met = threading.Barrier(3)
        def task(first, last):
            met.wait(10)
            if threading.current_thread() is not threading.main_thread():
                raise MemoryError("thread")
        try:
            threads.run(task, 3, 1e9)
        except MemoryError as error:
            assert str(error) == "thread"
        else:
            raise AssertionError
    """)


@pytest.mark.slow
def test_calls_while_the_interpreter_shuts_down():
    """From a thread that outlives the main one, and from atexit, no pool takes work any more."""
    for late in ("atexit.register(late)", "threading.Thread(target=later).start()"):
        printed = run(PROBLEM + """
import atexit, threading, time
expected = work()
def late():
    print(np.array_equal(work(), expected))
def later():
    threading.main_thread().join()
    late()
""" + late)  # fmt: skip
        assert printed == "True"


def test_container_quota(tmp_path, monkeypatch):
    from thinformer import get_num_threads
    from thinformer.support import threads

    for variable in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    unlimited = threads.available_cores()
    for text, cores in (("100000 100000", 1), ("50000 100000", 1), ("max 100000", unlimited)):
        quota = tmp_path / text.replace(" ", "-")
        quota.write_text(text + "\n")
        monkeypatch.setattr(threads, "CGROUP", quota)
        assert threads.available_cores() == cores
        assert get_num_threads() == cores


@pytest.mark.slow
def test_interrupt_stops_all_threads_soon():
    """A KeyboardInterrupt in the middle of hours of work ends it, and leaves a usable pool."""
    run("""
        import threading, time
        import thinformer
        from thinformer.support import threads
        thinformer.set_num_threads(3)
        done, begun = [], threading.Event()
        def task(first, last):
            assert last - first == 1  # pieces of one unit
            if threading.current_thread() is threading.main_thread():
                begun.wait()
                raise KeyboardInterrupt
            begun.set()
            done.append(first)
        try:
            threads.run(task, 10**6, 1e16)
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("not interrupted")
        count = len(done)
        assert count < 10**6 / 2, count
        assert len(done) == count  # nothing runs on
        done.clear()
        threads.run(lambda first, last: done.append(first), 9, 1e7)
        assert sorted(done) == list(range(9))
    """)


@pytest.mark.slow
def test_interrupt_stops_a_long_unit():
    """A unit that is hours of work yields, and is left off at the next piece."""
    run("""
        import threading
        from thinformer import set_num_threads
        from thinformer.support import threads
        set_num_threads(2)
        pieces, begun = [], threading.Event()
        def task(first, last):
            if threading.current_thread() is threading.main_thread():
                begun.wait()
                raise KeyboardInterrupt
            for piece in range(10**7):
                pieces.append(piece)
                begun.set()
                yield 0.0
        try:
            threads.run(task, 2, 1e16)
        except KeyboardInterrupt:
            assert len(pieces) < 10**6, len(pieces)
        else:
            raise AssertionError("not interrupted")
    """)


@pytest.mark.slow
def test_a_call_does_not_wait_for_another_callers_work():
    """A short call beside a long one that keeps all of the pool's threads busy."""
    run("""
        import threading
        from thinformer import set_num_threads
        from thinformer.support import threads
        set_num_threads(2)
        short_is_done = threading.Event()
        def long(first, last):
            assert short_is_done.wait(60)
        waiting = threading.Thread(target=threads.run, args=(long, 2, 1e9))
        waiting.start()
        done = []
        threads.run(lambda first, last: done.append(first), 8, 1e9)
        assert sorted(done) == list(range(8))
        short_is_done.set()
        waiting.join()
    """)


@pytest.mark.slow
def test_results_are_complete_where_no_thread_can_be_started():
    """An item that stays queued may yet be picked up: then it is waited for."""
    run("""
        import threading
        from thinformer import set_num_threads
        from thinformer.support import threads
        set_num_threads(4)
        release, picked, last = threading.Event(), threading.Event(), threading.Event()
        threads._executor(3)  # room for three threads, of which the next line starts one
        long = threading.Thread(target=threads.run, args=(lambda *_: release.wait(60), 2, 1e9))
        long.start()
        def failing(self):
            raise RuntimeError("can't start new thread")
        threading.Thread.start = failing
        done = []
        def task(first, last_of_range):
            if threading.current_thread() is threading.main_thread():
                release.set()
                assert picked.wait(60)
                if first == 2:
                    last.set()
            elif not picked.is_set():
                picked.set()
                assert last.wait(60)
                sum(range(10**6))  # the caller is through long before
            done.append(first)
        threads.run(task, 3, 1e9)
        assert sorted(done) == [0, 1, 2], done
        long.join()
    """)


@pytest.mark.slow
def test_an_error_stops_the_other_threads():
    run("""
        import threading
        from thinformer import set_num_threads
        from thinformer.support import threads
        set_num_threads(2)
        failed, done = threading.Event(), []
        def task(first, last):
            if threading.current_thread() is not threading.main_thread():
                failed.set()
                raise MemoryError("thread")
            failed.wait(10)
            done.append(first)
        try:
            threads.run(task, 10**5, 1e15)
        except MemoryError:
            assert len(done) < 10**4, len(done)
        else:
            raise AssertionError
    """)


@pytest.mark.slow
def test_interrupt_by_signal():
    """SIGINT during one long computation: it ends as an interrupt, and the next one is right."""
    run(PROBLEM + """
import os, signal, threading
big = np.random.default_rng(1).standard_normal((400_000, 32)).astype(np.float32)
expected = work()
thinformer.kh_compress(big[:1000], rng=0)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    for _ in range(1000):
        thinformer.kh_compress(big, g=4, rng=0)
except KeyboardInterrupt:
    pass
else:
    raise AssertionError("not interrupted")
assert np.array_equal(work(), expected)
""")  # fmt: skip


def test_what_is_done_is_told():
    """The caller hears of the units of all threads, and of pieces where a task yields."""
    from thinformer import set_num_threads
    from thinformer.support import threads

    set_num_threads(1)
    told = []
    threads.run(lambda first, last: None, 4, 4 * threads.PIECE_FLOPS, told.append)
    assert told == [0.25, 0.5, 0.75, 1.0]
    told.clear()

    def halves(first, last):
        assert last - first == 1
        yield 0.5
        if first != 1:  # the last piece may be told, or not
            yield 1.0

    threads.run(halves, 4, 4 * threads.PIECE_FLOPS, told.append)
    assert told == [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]
    told.clear()
    threads.run(lambda first, last: None, 0, 0, told.append)
    assert told == [1.0]


def test_all_threads_count_and_the_caller_tells():
    from thinformer import set_num_threads
    from thinformer.support import threads

    set_num_threads(2)
    told, tellers = [], set()
    caller, turns = threading.get_ident(), threading.Event()

    def task(first, last):
        if threading.get_ident() == caller:
            turns.wait(10)  # until the other thread has done all other units
        elif first == 7:
            turns.set()

    def done(fraction):
        tellers.add(threading.get_ident())
        told.append(fraction)

    threads.run(task, 8, 8 * threads.PIECE_FLOPS, done)
    assert tellers == {caller}
    assert told in ([0.875, 1.0], [1.0])  # the other's last unit may be done too


def test_who_is_told_may_end_the_call():
    from thinformer import set_num_threads
    from thinformer.support import threads

    set_num_threads(2)
    begun = []

    def done(fraction):
        raise KeyError(fraction)

    with pytest.raises(KeyError):
        threads.run(lambda first, last: begun.append(first), 10**6, 1e16, done)
    count = len(begun)
    assert count < 10**6
    assert len(begun) == count  # nothing runs on
