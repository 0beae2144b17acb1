"""Programs of several streams: queues side by side, shared semaphores, what is refused, and the order that is found."""

import numpy as np
import pytest

from h2learn.backends.h2learn.assembler import assemble, disassemble, objdump
from h2learn.backends.h2learn.encoder import Decoded
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.machine import load_machine
from h2learn.backends.h2learn.random_programs import random_program
from h2learn.runtime.loader import load, program_of
from h2learn.runtime.simulator import Simulator
from h2learn.runtime.timing import BUILDER_START_UP, START_UP
from h2learn.runtime.trace import chrome_trace

HEAD = ".machine h2l-edge\n.data 0x4000\n.zero 4096\n.bss 0x8000, 8192\n.text\n"
ROW = "".join(f"cfg x0.{name}, 1\n" for name in ("n0", "n1", "n2", "n3", "ylim", "xlim")) + "cfg x0.run, 16\n"
LOAD, STORE = "ld dst=a2, src=a1, y=a0, x=a0, desc=x0\n", "st dst=a3, src=a2, y=a0, x=a0, desc=x0\n"
PLACES = "addr a1, DRAM, 0x4000\naddr a2, U, 0x40\naddr a3, DRAM, 0x8000\n"
CONV = {"imgs": 1, "oh": 8, "ow": 8, "kh": 1, "kw": 1, "sh": 1, "sw": 1, "c": 4, "k": 16, "fan": 4, "gblk": 64}


def run(body, **options):
    options.setdefault("execute", "reference")
    sim = Simulator(load(assemble(HEAD + body, "test.s")), **options)
    return sim, sim.run()


def fork(stream, body):
    return f"fork {stream} {{\n{body}halt\n}}\n"


def look_up(table, sums):
    """Address registers, descriptor, one table and one look-up in it."""
    conv = "".join(f"cfg c0.{name}, {value}\n" for name, value in CONV.items())
    places = f"addr a1, A, {sums}\naddr a2, S, 0\naddr a3, L, {table}\naddr a4, W, 0\n"
    return (
        conv + places + ("fe.fill lut=a3, w=a4, desc=c0\nfe.run acc=a1, s=a2, lut=a3, desc=c0, init=0, shape=16x128\n")
    )


FILL, LOOK, SETUP = BUILDER_START_UP + 15, START_UP["FE"] + 4, len(CONV) + 4


def test_streams_execute_an_instruction_per_cycle_each():
    for count in range(4):
        _, report = run("".join(fork(n + 1, "nop BE\nloop 50\nendl\n") for n in range(count)) + "loop 60\nendl\nhalt\n")
        assert report.cycles == count + 1 + 60 + 1
        assert report.instructions == count * (1 + 1 + 1 + 50 + 1) + 62 and report.busy["BE"] == count


def test_two_streams_share_the_forward_engine():
    sim, report = run(fork(1, look_up(4096, 8192)) + look_up(0, 0) + "halt\n", sanitize={"race"}, trace=True)
    first = 1 + SETUP + 1  # both streams dispatch their table in the same cycle; stream 0 goes first
    spans = {(span.track, sim.program.streams[span.pc]): (span.start, span.end) for span in sim.spans}
    assert spans == {
        ("FE.fill", 0): (first, first + FILL),
        ("FE.fill", 1): (first + FILL, first + 2 * FILL),
        ("FE", 0): (first + FILL, first + FILL + LOOK),
        ("FE", 1): (first + 2 * FILL, first + 2 * FILL + LOOK),
    }
    assert report.busy["FE"] == 2 * LOOK and report.busy["FE.fill"] == 2 * FILL and report.findings == []
    events = chrome_trace(sim.program, sim.spans)["traceEvents"]
    assert sorted(event["args"]["stream"] for event in events if event["ph"] == "X") == [0, 0, 1, 1]


def test_the_lowest_ready_stream_goes_first():
    body = fork(1, "nop BE\n" * 4) + fork(2, "nop BE\n" * 2) + "nop BE\n" * 2 + "halt\n"
    sim, _ = run(body, trace=True)
    order = [(span.start, sim.program.streams[span.pc]) for span in sim.spans]
    assert order == [(2, 1), (3, 0), (4, 0), (5, 1), (6, 1), (7, 1), (8, 2), (9, 2)]


def test_a_wait_blocks_its_own_stream_only():
    body = fork(1, "wait FE, 1, 1\nnop FE\n") + "nop FE\n" * 3 + "nop BE\n" * 20 + "signal BE, 1, 1\nhalt\n"
    sim, report = run(body, trace=True)
    ends = {sim.program.streams[span.pc]: span.end for span in sim.spans if span.track == "FE"}
    assert ends[0] < 8 and ends[1] > 20 and report.findings == []


def test_a_signal_waits_for_the_work_of_its_own_stream_only():
    other = "wait VEC, 1, 1\nnop VEC\n"
    body = fork(1, other) + ROW + PLACES + fork(2, "nop DMAIN\nsignal DMAIN, 1, 1\n") + "nop VEC\n" + LOAD + "halt\n"
    sim, report = run(body, sanitize={"race"}, trace=True)
    woken = next(span.start for span in sim.spans if span.track == "VEC" and sim.program.streams[span.pc])
    assert woken < 20 < report.cycles


def test_a_fence_waits_for_its_own_stream_only():
    work = ROW + PLACES + LOAD + "fence\n"
    _, report = run(fork(1, work) + "nop VEC\nfence\nnop VEC\nhalt\n")
    assert 100 < report.stalls["CTRL"]["fence"] < 110, "stream 1 waits for its load, stream 0 at most for a nop"
    sim, _ = run(fork(1, "fence\nnop BE\n") + work + "halt\n", trace=True)
    assert next(span.start for span in sim.spans if span.track == "BE") < 10


def test_a_full_queue_stops_its_own_stream_only():
    body = fork(1, "loop 100\nendl\nsignal BE, 1, 1\n") + "wait FE, 1, 1\nloop 30\nnop FE\nendl\nhalt\n"
    _, report = run(body)
    assert report.stalls["CTRL"]["queue of FE full"] > 50 and report.busy["FE"] == 30
    assert report.stalls["FE"]["semaphore 1"] > 90


def test_registers_and_descriptors_are_the_streams_own():
    """Both streams move 16 bytes with the same numbers of registers and descriptors, to and from other places."""
    there = "addr a1, DRAM, 0x4100\naddr a2, U, 0x80\naddr a3, DRAM, 0x8100\n"
    sync = "signal DMAIN, {0}, 1\nwait DMAOUT, {0}, 1\n"
    body = ROW + fork(1, ROW + there + LOAD + sync.format(1) + STORE) + PLACES + LOAD + sync.format(2) + STORE
    sim = Simulator(load(assemble(HEAD + body + "halt\n", "test.s")), execute="reference")
    dram = sim.memories.arrays["DRAM"]
    dram[:0x1000] = np.random.default_rng(0).integers(0, 256, 0x1000)
    assert sim.run().findings == []
    assert (dram[0x4000:0x4010] == dram[:0x10]).all() and (dram[0x4100:0x4110] == dram[0x100:0x110]).all()


def test_what_a_stream_never_set_is_found():
    _, report = run(ROW + PLACES + fork(1, LOAD) + "halt\n")
    messages = [finding.message for finding in report.findings if finding.kind == "uninit"]
    assert any("ld at pc 11 (stream 1) uses its descriptor" in message for message in messages)


def pipeline(drop=""):
    """Stream 0 loads four tiles, stream 1 stores them, over one buffer."""
    move = ROW + PLACES + "cfg a1.stride0, 16\ncfg a3.stride0, 16\n"
    store = "signal DMAOUT, 2, 1\nloop 4\nwait DMAOUT, 1, 1\n" + STORE + "signal DMAOUT, 2, 1\nendl\n"
    load = "loop 4\nwait DMAIN, 2, 1\n" + LOAD + "signal DMAIN, 1, 1\nendl\n"
    return (fork(1, move + store) + move + load + "wait DMAIN, 2, 1\nhalt\n").replace(drop, "", 1)


def test_semaphores_order_streams():
    sim = Simulator(load(assemble(HEAD + pipeline(), "test.s")), execute="reference")
    dram = sim.memories.arrays["DRAM"]
    dram[:64] = np.arange(64)
    assert sim.run().findings == []
    assert (dram[0x4000:0x4040] == dram[:64]).all()


@pytest.mark.parametrize("wait", ["wait DMAOUT, 1, 1\n", "wait DMAIN, 2, 1\n"])
def test_a_dropped_wait_between_streams_is_a_race(wait):
    body = pipeline(drop=wait)
    _, report = run(body, sanitize={"race"})
    races = [finding.message for finding in report.findings if finding.other_pc >= 0]
    assert any("(stream 1" in message and "races with the" in message for message in races), report.findings


def test_a_stream_starts_after_the_last_fence():
    write, read = ROW + PLACES + LOAD, fork(1, ROW + PLACES + STORE)
    assert run(write + "fence\n" + read + "halt\n", sanitize={"race"})[1].findings == []
    assert len(run(write + read + "halt\n", sanitize={"race"})[1].findings) == 1
    assert len(run(read + write + "fence\nhalt\n", sanitize={"race"})[1].findings) == 1


def test_a_deadlock_names_the_streams():
    body = fork(2, "wait FE, 1, 1\nfence\n") + "wait BE, 2, 3\nhalt\n"
    with pytest.raises(H2LearnError) as caught:
        run(body)
    assert "FE at pc 1 (stream 2) waits for 1 of semaphore 1, which holds 0" in caught.value.message
    assert "BE at pc 4 waits for 3 of semaphore 2, which holds 0" in caught.value.message
    assert "the front end at pc 2 (stream 2) waits at a fence" in caught.value.message


def test_the_limit_counts_all_streams():
    with pytest.raises(H2LearnError, match="executed 50 instructions without reaching halt"):
        run(fork(1, "loop 30\nendl\n") + "loop 30\nendl\nhalt\n", max_instructions=50)


def test_a_break_stops_one_stream():
    _, report = run(fork(1, "nop FE\nnop FE\n") + "nop BE\nnop BE\nhalt\n", break_at=2)
    assert report.stopped_at == 2 and report.busy["FE"] == 1 and report.busy["BE"] == 2


def words(*mnemonics):
    made = []
    for mnemonic in mnemonics:
        name, *numbers = mnemonic.split()
        fields = {"fork": ("stream", "length"), "loop": ("count",), "wait": ("engine", "sem", "count")}.get(name, ())
        made.append(Decoded(name, dict(zip(fields, map(int, numbers), strict=True))))
    return made


@pytest.mark.parametrize(
    ("code", "message", "place"),
    [
        (("loop 2", "fork 1 1", "halt", "endl", "halt"), "fork stands inside a loop", "pc 1"),
        (("fork 1 3", "fork 2 1", "halt", "halt", "halt"), "fork stands in stream 1, but only stream 0", "pc 1"),
        (("fork 1 1", "halt", "fork 1 1", "halt", "halt"), "fork starts stream 1 a second time", "pc 2"),
        (("fork 1 1", "fence", "halt"), "the block of 1 instructions behind fork does not end in halt", "pc 0"),
        (("fork 1 9", "halt", "halt"), "the block of 9 instructions behind fork does not end in halt", "pc 0"),
        (("fork 1 2", "loop 2", "halt", "endl", "halt"), "the loop is never closed", "pc 1"),
        (("loop 2", "fork 1 2", "endl", "halt", "endl", "halt"), "fork stands inside a loop", "pc 1"),
        (("fork 1 2", "endl", "halt", "halt"), "endl closes no loop", "pc 1"),
        (("wait 2 7 1", "wait 3 7 1", "halt"), "two queues take from semaphore 7", "pc 1"),
        (("fork 1 2", "wait 2 7 1", "halt", "wait 2 7 1", "halt"), "two queues take from semaphore 7", "pc 3"),
    ],
)
def test_what_the_loader_refuses(code, message, place):
    with pytest.raises(H2LearnError, match=message) as caught:
        program_of(words(*code), load_machine("h2l-edge"))
    assert str(caught.value.location).endswith(place)


@pytest.mark.parametrize("seed", range(10))
def test_random_programs_load(seed):
    code = random_program(np.random.default_rng(seed), 60)
    program = program_of([item for item in code if item.mnemonic != "setup"], load_machine("h2l-edge"))
    assert len(set(program.streams)) == 1 + sum(item.mnemonic == "fork" for item in code)


def test_assembly_nests_blocks():
    first = '.loc "net.snn:1:1", "t"\n' + fork(1, "loop 3\nnop FE\nendl\n") + ".endloc\n"
    obj = assemble(HEAD + first + "fork 2 { ; the rest\nhalt\n  } ; of it\nhalt\n")
    assert [item.fields["length"] for item in load(obj).code if item.mnemonic == "fork"] == [4, 1]
    assert assemble(disassemble(obj)) == obj
    assert "     0  fork 1 {" in objdump(obj) and objdump(obj).count("}") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fork 1\nhalt\n", "fork takes a block in braces"),
        ("fork {\nhalt\n}\nhalt\n", "operand 'stream' is missing"),
        ("fork 1 {\n}\nhalt\n", "length must be 1 to"),
        ("fork 1 {\nhalt\n", "the block is never closed"),
        ("halt\n}\n", "there is no open block to close"),
        ("fork 6 {\nhalt\n}\nhalt\n", "stream must be 1 to 5"),
    ],
)
def test_what_the_assembler_refuses(text, message):
    with pytest.raises(H2LearnError, match=message):
        assemble(HEAD + text)
