"""Streams in the interpreter: the same bytes as in the simulator, and what it says when they wait for each other."""

from __future__ import annotations

import numpy as np
import pytest
from xdsl.context import Context
from xdsl.dialects import builtin, func
from xdsl.parser import Parser

from h2learn.backends.h2learn.assembler import assemble
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.dialects import h2
from h2learn.dialects.h2.interpreter import run_program
from h2learn.dialects.h2.layouts import Memory
from h2learn.runtime.loader import load
from h2learn.runtime.simulator import Simulator

HEAD = ".machine h2l-edge\n.data 0x1000\n.zero 4096\n.bss 0x3000, 4096\n.text\n"
ONE_ROW = "".join(f"cfg x0.{name}, 1\n" for name in ("n0", "n1", "n2", "n3", "ylim", "xlim"))


def instructions(body: str) -> list[h2.InstructionOp]:
    context = Context()
    for dialect in (builtin.Builtin, func.Func, h2.H2):
        context.load_dialect(dialect)
    lines = (line if line == "}" else f"h2.{line}" for line in body.splitlines())
    module = Parser(context, "func.func @main() {\n" + "\n".join(lines) + "\n}").parse_module()
    return h2.program_ops(module)


def pipeline(rng: np.random.Generator) -> str:
    """Tiles of spikes are loaded, averaged and stored, each step in a stream of its own or in stream 0."""
    tiles, n = int(rng.integers(3, 7)), int(rng.integers(1, 6))
    slots = [int(size) for size in rng.integers(1, 4, 2)]
    spikes = f"addr a2, S, 64\ncfg a2.step0, 1\ncfg a2.ring, {slots[0]}\ncfg a2.rbytes, {2 * n}\n"
    rates = f"addr a4, A, 32\ncfg a4.step0, 1\ncfg a4.ring, {slots[1]}\ncfg a4.rbytes, {4 * n}\n"
    load_tile = ONE_ROW + f"cfg x0.run, {2 * n}\naddr a1, DRAM, 0x1000\ncfg a1.stride0, {2 * n}\n" + spikes
    load_tile += f"loop {tiles}\nwait DMAIN, 2, 1\nld dst=a2, src=a1, y=a0, x=a0, desc=x0\nsignal DMAIN, 1, 1\nendl\n"
    average = f"cfg v0.n, {n}\ncfg v0.k, 1\ncfg v0.steps, 2\ncfg v0.kind, rate\n" + spikes + rates
    average += f"signal VEC, 2, {slots[0]}\nloop {tiles}\nwait VEC, 1, 1\nwait VEC, 4, 1\n"
    average += "v.reduce dst=a4, src=a2, desc=v0, init=0\nsignal VEC, 2, 1\nsignal VEC, 3, 1\nendl\n"
    store = ONE_ROW + f"cfg x0.run, {4 * n}\naddr a3, DRAM, 0x3000\ncfg a3.stride0, {4 * n}\n" + rates
    store += f"signal DMAOUT, 4, {slots[1]}\nloop {tiles}\nwait DMAOUT, 3, 1\n"
    store += "st dst=a3, src=a4, y=a0, x=a0, desc=x0\nsignal DMAOUT, 4, 1\nendl\n"
    parts = [load_tile, average, store]
    own = int(rng.integers(3))
    others = [number for number in range(3) if number != own]
    forks = [f"fork {stream} {{\n{parts[number]}halt\n}}\n" for stream, number in enumerate(others, start=1)]
    return "".join(forks) + parts[own] + "halt\n"


@pytest.mark.parametrize("seed", range(8))
def test_same_bytes_as_the_simulator(seed: int) -> None:
    rng = np.random.default_rng(seed)
    body = pipeline(rng)
    data = rng.integers(0, 2, 4096, dtype=np.uint8)
    simulator = Simulator(load(assemble(HEAD + body, "test.s")), execute="reference", sanitize={"race", "bounds"})
    simulator.memories.arrays["DRAM"][:4096] = data
    report = simulator.run()
    assert [finding for finding in report.findings if finding.other_pc >= 0] == []
    dram = Memory("DRAM", 0x4000, fill=0)
    dram.view(0x1000, 4096)[:] = data
    run_program(instructions(body), dram)
    assert (dram.view(0x3000, 4096) == simulator.memories.arrays["DRAM"][0x2000:]).all()
    assert dram.view(0x3000, 4096).any()


def test_a_deadlock_names_the_streams() -> None:
    body = "fork 1 {\nwait FE, 1, 1\nhalt\n}\nnop BE\nsignal BE, 2, 1\nwait BE, 2, 3\nhalt\n"
    with pytest.raises(H2LearnError) as caught:
        run_program(instructions(body), Memory("DRAM", 0))
    assert caught.value.message == (
        "deadlock: stream 0 at pc 5 waits for 3 of semaphore 2, which holds 1;"
        " stream 1 at pc 1 waits for 1 of semaphore 1, which holds 0"
    )
