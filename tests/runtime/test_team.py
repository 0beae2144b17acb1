"""Threads that share the work of a call: everything done once, the same results, nothing that hangs."""

import os
import signal
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import h2learn
from h2learn.runtime import prepared, team
from h2learn.runtime.native import call, words_at
from h2learn.runtime.prepared import Arguments, Builder
from h2learn.runtime.simulator import Simulator
from h2learn.runtime.team import Team, team_at_work

NETWORK = Path(__file__).parents[2] / "examples" / "mnist.snn"


@call(words=1)
def mark(args, extra, low, high, counts):
    """Count how often every place is met; ``extra`` is met wherever it lies in the range: then fail."""
    places, found = words_at(words_at(args, 1)[0], high), words_at(counts, 4)
    for i in range(low, high):
        if i == extra:
            raise ValueError("the place that must not be met")
        places[i] += 1
        found[0] += i
    return 1


def marking(places, pieces, *, bad=-1, first=0):
    builder = Builder()
    args = Arguments().numbers(places.ctypes.data)
    builder.call(mark, args, places.size - first, pieces * prepared.WORTH_A_PIECE, first=first, extra=bad)
    return builder.prepared({"fixed": 7}, {"sum": (0, 1), "twice": (0, 2)})


@pytest.fixture
def three(monkeypatch):
    crew = Team(3)
    monkeypatch.setattr(team, "_shared", lambda: crew)
    return crew


@pytest.mark.parametrize("size", [0, 1, 5, 1000])
def test_every_place_is_met_once(three, size):
    for pieces in (1, 2, 3, 12, 70000):
        places = np.zeros(size, np.int64)
        block = marking(places, pieces, first=min(size, 2))
        for times in range(1, 6):
            found = block.execute().counts
            assert (places[2:] == times).all() and not places[:2].any()
            total = sum(range(2, size))
            assert found == {"fixed": 7, "sum": total, "twice": 2 * total}


def test_many_small_jobs_from_many_threads(three):
    """Only one thread at a time has the helpers; the others do their work alone, and nothing is lost."""
    arrays = [np.zeros(64, np.int64) for _ in range(3)]

    def work(places):
        block = marking(places, 12)
        for _ in range(300):
            block.execute()

    threads = [threading.Thread(target=work, args=(places,)) for places in arrays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert all((places == 300).all() for places in arrays)


@pytest.mark.parametrize("pieces", [1, 12])
def test_a_call_that_fails_is_an_error_and_the_team_goes_on(three, pieces, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: seen.append(str(found.exc_value)))
    places = np.zeros(100, np.int64)
    with pytest.raises(MemoryError, match="kernel"):
        marking(places, pieces, bad=99).execute()
    assert seen == ["the place that must not be met"]
    places[:] = 0
    assert marking(places, pieces).execute().counts["sum"] == sum(range(100))


def test_helpers_sleep_after_an_exception_and_wake_again(three):
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), team_at_work() as workers:
            assert workers is three
            raise error
        assert three.words[team.AT_WORK] == 0
    places = np.zeros(100, np.int64)
    marking(places, 12).execute()
    assert (places == 1).all()


def test_a_words_too_many_is_refused():
    with pytest.raises(ValueError, match="mark reads 1 words, given 2"):
        Builder().call(mark, Arguments().numbers(1, 2), 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_process_has_its_own_helpers():
    places = np.zeros(100, np.int64)
    block = marking(places, 12)
    block.execute()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        block.execute()
        os._exit(0 if (places == 2).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture(scope="module")
def program():
    model = h2learn.load_model(NETWORK)
    return h2learn.compile(model, train=model.train, batch=2).loaded


def contents(program, runs):
    """Return report and memories after some runs on the same noise."""
    sim = Simulator(program, sanitize=())
    report = {}
    for _ in range(runs):
        report = sim.run().to_dict()
    return report, {name: array.tobytes() for name, array in sim.memories.arrays.items()}


def test_programs_leave_the_same_bytes_whoever_does_the_work(program, monkeypatch):
    wanted = []
    for threads in (1, 2, 3):
        crew = Team(threads)
        with monkeypatch.context() as patch:
            patch.setattr(prepared, "WORTH_A_PIECE", 1 if threads > 1 else 1 << 13)
            patch.setattr(team, "_shared", lambda crew=crew: crew)
            wanted.append(contents(program, 2))
    assert wanted[0] == wanted[1] == wanted[2]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
def test_a_run_can_be_interrupted(program):
    sim = Simulator(program, sanitize=())
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            while True:
                sim.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert sim.run().executed == Simulator(program, sanitize=()).run().executed
