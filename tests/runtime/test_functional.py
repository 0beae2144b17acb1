"""Functional runs: the same bytes and the same results that are not finite, a cycle for everything, no counts."""

from pathlib import Path

import numpy as np
import pytest

import h2learn
from h2learn.backends.h2learn.assembler import assemble
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.runtime import prepared
from h2learn.runtime.loader import load
from h2learn.runtime.native import call, words_at
from h2learn.runtime.prepared import Arguments, Builder
from h2learn.runtime.simulator import Simulator

NETWORK = Path(__file__).parents[2] / "examples" / "digits.snn"
NOPS = ".machine h2l-edge\n.text\nloop 7\nnop VEC\nnop BE\nendl\nhalt\n"


@pytest.fixture(scope="module")
def program():
    model = h2learn.load_model(NETWORK)
    return h2learn.compile(model, train=model.train, batch=2).loaded


@pytest.mark.parametrize(("execute", "sanitize"), [("fast", ()), ("fast", ("race",)), ("reference", ())])
def test_bytes_and_what_is_not_finite_are_those_of_a_timed_run(program, execute, sanitize):
    found = []
    for timing in (True, False):
        sim = Simulator(program, execute=execute, timing=timing, sanitize=sanitize)
        base, size = sim.memories.dram_base, len(sim.memories.arrays["DRAM"])
        symbol = next(s for s in program.symbols.values() if s.name.endswith("f1.weight"))
        assert base <= symbol.address < base + size
        sim.memories.arrays["DRAM"][symbol.address - base :][:4].view(np.float32)[:] = np.inf
        report = sim.run()
        contents = {name: array.tobytes() for name, array in sim.memories.arrays.items()}
        found.append((contents, report.nonfinite, report.instructions, report.dispatched))
        if timing:
            timed = report
    assert found[0] == found[1] and report.nonfinite and report.cycles < timed.cycles
    assert timed.work and timed.energy_pj > 0
    for name in ("by_pc", "executed", "work", "stalls", "bytes_read", "bytes_written", "energy"):
        with pytest.raises(H2LearnError, match="a functional run counts no cycles and no work"):
            getattr(report, name)


def test_an_instruction_takes_a_cycle():
    loaded = load(assemble(NOPS, "test.s"))
    found = Simulator(loaded, timing=False).run()
    assert found.busy["VEC"] == found.busy["BE"] == 7


@call(words=1)
def add(args, extra, low, high, counts):
    """Count ``extra`` and the work."""
    found = words_at(counts, 2)
    found[0] += extra
    found[1] += high - low
    return 1


@pytest.mark.parametrize("counting", [True, False])
def test_calls_that_only_count_are_left_out(counting):
    builder, args = Builder(counting), Arguments().numbers(0)
    builder.call(add, args, 3, extra=1)
    builder.count(add, args, 5, extra=10)
    block = builder.prepared({"fixed": 2}, {"work": (1, 1), "nonfinite": (0, 1)}, result=1)
    assert block.execute().counts == ({"fixed": 2, "work": 8, "nonfinite": 11} if counting else {"nonfinite": 1})
    assert block.block[prepared.RESULT] == (1 if counting else -1)
    assert block.block[prepared.NONFINITE] == 0
