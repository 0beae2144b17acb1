"""Races, uninitialised reads and stray DRAM accesses are found; correct programs give no findings."""

import numpy as np
import pytest

from h2learn.backends.h2learn.assembler import assemble
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.runtime.loader import load
from h2learn.runtime.sanitizers import MAX_FINDINGS
from h2learn.runtime.simulator import Simulator

HEAD = """
.machine h2l-edge
.rodata 0x1000
.zero 64
.data 0x4000
.zero 4096
.bss 0x8000, 8192
.text
"""

ONE_ROW = "".join(f"cfg x0.n{d}, 1\n" for d in range(4)) + "cfg x0.ylim, 1\ncfg x0.xlim, 1\n"
LOAD, STORE = "ld dst=a2, src=a1, y=a0, x=a0, desc=x0\n", "st dst=a3, src=a2, y=a0, x=a0, desc=x0\n"
MOVE = ONE_ROW + "cfg x0.run, 16\naddr a1, DRAM, 0x4000\naddr a2, U, 0x40\naddr a3, DRAM, 0x8000\n"


def run(body, **options):
    sim = Simulator(load(assemble(HEAD + body, "test.s")), execute="reference", **options)
    return sim, sim.run()


def findings(body, **options):
    return [(f.kind, f.message) for f in run(body, **options)[1].findings]


def pipeline(rng, drop=-1, without=-1):
    """Tiles of spikes through ld, v.reduce and st over rings of buffers.

    ``drop``: number of the wait to leave out; ``without``: semaphore to leave out with its signals and waits.
    """
    tiles, inputs, outputs = int(rng.integers(4, 7)), int(rng.integers(1, 4)), int(rng.integers(1, 4))
    n = int(rng.integers(1, 6))
    lines = [ONE_ROW + f"cfg x0.run, {2 * n}\n"]
    lines.append(
        "".join(f"cfg x1.{f}, 1\n" for f in ("n0", "n1", "n2", "n3", "ylim", "xlim")) + f"cfg x1.run, {4 * n}\n"
    )
    lines.append(f"cfg v0.n, {n}\ncfg v0.k, 1\ncfg v0.steps, 2\ncfg v0.kind, rate\n")
    lines.append(f"addr a1, DRAM, 0x4000\ncfg a1.stride0, {2 * n}\naddr a3, DRAM, 0x8000\ncfg a3.stride0, {4 * n}\n")
    lines.append(f"addr a2, S, 64\ncfg a2.step0, 1\ncfg a2.ring, {inputs}\ncfg a2.rbytes, {2 * n}\n")
    lines.append(f"addr a4, A, 32\ncfg a4.step0, 1\ncfg a4.ring, {outputs}\ncfg a4.rbytes, {4 * n}\n")
    sync = [("signal", "VEC", 2, inputs), ("signal", "DMAOUT", 4, outputs), "loop", ("wait", "DMAIN", 2, 1), "ld"]
    sync += [("signal", "DMAIN", 1, 1), ("wait", "VEC", 1, 1), ("wait", "VEC", 4, 1), "reduce", ("signal", "VEC", 2, 1)]
    sync += [("signal", "VEC", 3, 1), ("wait", "DMAOUT", 3, 1), "st", ("signal", "DMAOUT", 4, 1), "endl"]
    sync += [("wait", "DMAIN", 2, inputs), ("wait", "VEC", 4, outputs)]
    work = {
        "loop": f"loop {tiles}",
        "ld": "ld dst=a2, src=a1, y=a0, x=a0, desc=x0",
        "reduce": "v.reduce dst=a4, src=a2, desc=v0, init=0",
        "st": "st dst=a3, src=a4, y=a0, x=a0, desc=x1",
        "endl": "endl",
    }
    waits = 0
    for item in sync:
        if isinstance(item, str):
            lines.append(work[item] + "\n")
            continue
        what, engine, sem, count = item
        waits += what == "wait"
        if sem != without and (what != "wait" or waits - 1 != drop):
            lines.append(f"{what} {engine}, {sem}, {count}\n")
    return "".join(lines) + "halt\n", (tiles, n)


@pytest.mark.parametrize("seed", range(6))
def test_correct_pipelines_are_silent_and_right(seed):
    body, (tiles, n) = pipeline(np.random.default_rng(seed))
    sim = Simulator(load(assemble(HEAD + body, "test.s")), execute="reference")
    spikes = np.random.default_rng(seed).integers(0, 2, (tiles, 2, n), dtype=np.uint8)
    sim.memories.arrays["DRAM"][0x3000 : 0x3000 + spikes.size] = spikes.reshape(-1)
    assert sim.run().findings == []
    rates = sim.memories.arrays["DRAM"][0x7000 : 0x7000 + 4 * tiles * n].view(np.float32).reshape(tiles, n)
    assert (rates == spikes.mean(axis=1)).all()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("drop", range(6))
def test_any_dropped_wait_is_found(seed, drop):
    body, _ = pipeline(np.random.default_rng(seed), drop=drop)
    try:
        assert [kind for kind, _ in findings(body)]
    except H2LearnError as error:
        assert "deadlock" in error.message


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("without", range(1, 5))
def test_without_a_semaphore_the_accesses_race(seed, without):
    """No token is left over, so this is the vector clocks' own work."""
    body, _ = pipeline(np.random.default_rng(seed), without=without)
    found = findings(body, sanitize={"race"})
    assert found and all("races with" in message for _, message in found)


def test_a_race_names_bytes_engines_and_places():
    body = MOVE + '.loc "net.snn:4:1", ""\n' + LOAD + '.loc "net.snn:9:1", ""\n' + STORE + "halt\n"
    assert findings(body, sanitize={"race"}) == [
        (
            "race",
            "read of U[0x40..0x50] by DMAOUT at pc 11 (net.snn:9:1)"
            " races with the write by DMAIN at pc 10 (net.snn:4:1)",
        )
    ]


def test_overlap_by_one_byte_is_a_race():
    handed_over = MOVE + LOAD + "signal DMAIN, 1, 1\nwait DMAOUT, 1, 1\n" + STORE
    later = "addr a2, U, {}\n" + LOAD + "signal DMAOUT, 2, 1\nwait DMAIN, 2, 1\nhalt\n"
    assert findings(handed_over + later.format("0x30")) == [] == findings(handed_over + later.format("0x50"))
    for address, part in (("0x31", "U[0x40..0x41]"), ("0x4f", "U[0x4f..0x50]")):
        ((kind, message),) = findings(handed_over + later.format(address))
        assert kind == "race" and f" of {part} by " in message
        assert "DMAIN at pc 15" in message and "DMAOUT at pc 13" in message


def test_strided_rows_that_interleave_do_not_race():
    rows = "cfg x0.run, 4\ncfg x0.n3, 4\ncfg x0.xlim, 4\ncfg x0.ss3, 8\ncfg x0.ds3, 8\n"
    rows += "addr a1, DRAM, 0x4000\naddr a2, U, 0\n"
    other = "addr a2, U, {}\naddr a3, DRAM, 0x8000\n" + STORE + "halt\n"
    body = ONE_ROW + rows + LOAD
    assert findings(body + other.format(4), sanitize={"race"}) == []
    ((_, message),) = findings(body + other.format(3), sanitize={"race"})
    assert "read of U[0x3..0x1c] by DMAOUT" in message


def test_order_passes_through_other_engines():
    chain = (
        MOVE
        + LOAD
        + "signal DMAIN, 1, 1\nwait FE, 1, 1\nsignal FE, 2, 1\nwait BE, 2, 1\nsignal BE, 3, 1\nwait DMAOUT, 3, 1\n"
    )
    assert findings(chain + STORE + "halt\n") == []


def test_tokens_order_only_what_came_before_them():
    early = MOVE + "signal DMAIN, 1, 1\n" + LOAD + "wait DMAOUT, 1, 1\n" + STORE + "halt\n"
    ((kind, message),) = findings(early, sanitize={"race"})
    assert kind == "race" and "races with the write by DMAIN" in message


def test_tokens_are_taken_oldest_first():
    two = MOVE + "signal VEC, 1, 1\nfence\n" + LOAD + "signal DMAIN, 1, 1\n"
    assert findings(two + "wait DMAOUT, 1, 2\n" + STORE + "halt\n") == []
    half = findings(two + "wait DMAOUT, 1, 1\n" + STORE + "wait DMAOUT, 1, 1\nhalt\n")
    assert [kind for kind, _ in half] == ["race"] and "races with" in half[0][1]


def test_fences_order_everything():
    assert findings(MOVE + LOAD + "fence\n" + STORE + "fence\n" + LOAD + "halt\n") == []


def test_a_race_in_a_loop_is_reported_once_and_the_list_is_capped():
    assert len(findings(MOVE + "loop 50\n" + LOAD + STORE + "endl\nhalt\n", sanitize={"race"})) == 2
    many = MOVE + (LOAD + STORE) * (MAX_FINDINGS // 2 + 5) + "halt\n"
    assert len(findings(many, sanitize={"race"})) == MAX_FINDINGS


def test_tokens_left_at_halt():
    left = findings("signal VEC, 5, 3\nwait VEC, 5, 1\nsignal FE, 6, 1\nhalt\n")
    assert left == [
        ("race", "semaphore 5 still holds 2 tokens at halt: a wait is missing"),
        ("race", "semaphore 6 still holds 1 token at halt: a wait is missing"),
    ]


def test_builder_and_look_up_need_no_semaphore_between_them():
    conv = "".join(
        f"cfg c0.{setting}\n"
        for setting in ("imgs, 1", "oh, 1", "ow, 1", "kh, 1", "kw, 1", "sh, 1", "sw, 1", "c, 4", "k, 2", "fan, 4")
    )
    load = ONE_ROW + "cfg x0.run, 32\naddr a1, DRAM, 0x4000\naddr a2, W, 0\n" + LOAD + "addr a2, S, 0\n" + LOAD
    fe = "addr a4, W, 0\naddr a5, L, 0\naddr a6, A, 0\naddr a7, S, 0\nsignal DMAIN, 1, 1\nwait FE, 1, 1\n"
    step = "fe.fill lut=a5, w=a4, desc=c0\nfe.run acc=a6, s=a7, lut=a5, desc=c0, init=0, shape=16x128\n"
    assert findings(conv + load + fe + step + step + "halt\n") == []


def test_reading_what_nothing_wrote():
    body = MOVE + LOAD + "signal DMAIN, 1, 1\nwait DMAOUT, 1, 1\naddr a2, U, 0x48\n" + STORE + "halt\n"
    assert findings(body) == [("uninit", "st at pc 14 reads U[0x50..0x58] (src), which nothing has written")]
    assert findings(body, sanitize={"race", "bounds"}) == []


def test_dram_of_the_program_counts_as_written():
    assert findings(MOVE + "addr a1, DRAM, 0x8100\n" + LOAD + "halt\n") == []


def test_zero_filled_rows_count_as_written():
    padded = MOVE + "cfg x0.ylim, 0\n" + LOAD + "fence\ncfg x0.ylim, 1\n" + STORE + "halt\n"
    _, report = run(padded)
    assert report.findings == [] and report.bytes_read == {"U": 16}


def test_on_chip_memory_is_unwritten_again_in_the_next_run():
    sim, first = run(MOVE + STORE + "halt\n")
    again = sim.run()
    assert [f.kind for f in first.findings] == [f.kind for f in again.findings] == ["uninit"]


def test_descriptors_and_registers_that_nothing_set():
    with pytest.raises(H2LearnError, match="dst is in DRAM") as caught:
        findings(MOVE + "ld dst=a9, src=a1, y=a0, x=a0, desc=x0\nhalt\n")
    assert caught.value.hint == "the program never set dst"
    body = "addr a1, DRAM, 0x4000\naddr a2, U, 0\n" + LOAD + "halt\n"
    assert findings(body) == [("uninit", "ld at pc 2 uses its descriptor, which the program never set")]


def test_coordinates_must_be_set():
    body = MOVE + "ld dst=a2, src=a1, y=a7, x=a0, desc=x0\nhalt\n"
    assert findings(body) == [("uninit", "ld at pc 10 uses the address register of y, which the program never set")]


def test_stray_and_read_only_dram():
    assert findings(MOVE + "addr a1, DRAM, 0x5000\n" + LOAD + "halt\n") == [
        ("bounds", "ld at pc 11 reads DRAM[0x5000..0x5010], which is outside the program's data")
    ]
    body = MOVE + LOAD + "fence\naddr a3, DRAM, 0x1008\n" + STORE + "halt\n"
    assert findings(body) == [("bounds", "st at pc 13 writes DRAM[0x1008..0x1018], which is read-only")]
    assert findings(MOVE + "addr a1, DRAM, 0x1008\n" + LOAD + "halt\n") == []


def test_rows_that_do_not_exist_are_no_accesses():
    body = MOVE + "addr a1, DRAM, 0x20000000\ncfg x0.xlim, 0\n" + LOAD + "halt\n"
    assert findings(body) == []


def random_straight_line(rng):
    """Loads and stores of few bytes at random places, hand-overs between random engines; never a deadlock."""
    lines, engines = [], ["DMAIN", "DMAOUT", "VEC"]
    for _ in range(int(rng.integers(4, 14))):
        address, size = int(rng.integers(0, 24)), int(rng.integers(1, 9))
        place = f"addr a2, U, {address}\ncfg x0.run, {size}\n"
        kind = int(rng.integers(4))
        if kind == 0:
            lines.append((place + LOAD, [("DMAIN", address, size, True)]))
        elif kind == 1:
            lines.append((place + STORE, [("DMAOUT", address, size, False)]))
        else:
            giver, taker = rng.choice(engines, 2, replace=False)
            sem = engines.index(giver) * 3 + engines.index(taker)
            lines.append((f"signal {giver}, {sem}, 1\nwait {taker}, {sem}, 1\n", [(giver, taker)]))
    return lines


def ordered_pairs(events):
    """Which accesses come before which others, by reachability over engine order and hand-overs."""
    reached, last = [], {}
    for number, event in enumerate(events):
        engine = event[0]
        before = last.get(engine, 0)
        if len(event) == 2:
            last[event[1]] = last.get(event[1], 0) | before
        else:
            last[engine] = before | 1 << number
        reached.append(before)
    return reached


def test_the_detector_agrees_with_reachability():
    verdicts = []
    for seed in range(150):
        lines = random_straight_line(np.random.default_rng([seed, 77]))
        events = [event for _, found in lines for event in found]
        reached = ordered_pairs(events)
        racing = any(
            len(a) == len(b) == 4
            and a[0] != b[0]
            and (a[3] or b[3])
            and a[1] < b[1] + b[2]
            and b[1] < a[1] + a[2]
            and not reached[j] >> i & 1
            for j, b in enumerate(events)
            for i, a in enumerate(events[:j])
        )
        body = (
            ONE_ROW + "addr a1, DRAM, 0x4000\naddr a3, DRAM, 0x8000\n" + "".join(text for text, _ in lines) + "halt\n"
        )
        assert bool(findings(body, sanitize={"race"})) == racing, seed
        verdicts.append(racing)
    assert 30 < sum(verdicts) < 120
