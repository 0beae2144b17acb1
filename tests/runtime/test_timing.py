"""Cycles against the formulas computed by hand, overlap of the engines, bounds, traffic and energy."""

import numpy as np
import pytest

from h2learn.backends.h2learn.assembler import assemble
from h2learn.backends.h2learn.energy_profile import load_profile
from h2learn.backends.h2learn.machine import load_machine
from h2learn.backends.h2learn.object_file import new_note
from h2learn.runtime.energy import energy_of, profile_for
from h2learn.runtime.loader import load
from h2learn.runtime.simulator import Simulator
from h2learn.runtime.timing import BUILDER_START_UP, START_UP, static_cycles

V0, EDGE = load_machine("h2l-v0"), load_machine("h2l-edge")
HEAD = ".machine h2l-edge\n.data 0x1000\n.zero 4096\n.bss 0x10000, 65536\n.text\n"
ONE_ROW = "".join(f"cfg x0.n{d}, 1\n" for d in range(4)) + "cfg x0.ylim, 1\ncfg x0.xlim, 1\n"
CONV = {"imgs": 2, "oh": 5, "ow": 4, "kh": 3, "kw": 3, "sh": 1, "sw": 1, "c": 18, "k": 40, "fan": 4, "gblk": 64}
DMA = ONE_ROW + "addr a1, DRAM, 0x1000\naddr a2, U, 0\naddr a3, DRAM, 0x10000\n"
LOAD, STORE = "ld dst=a2, src=a1, y=a0, x=a0, desc=x0\n", "st dst=a3, src=a2, y=a0, x=a0, desc=x0\n"


def run(body, prepare=None, execute="reference", **options):
    sim = Simulator(load(assemble(HEAD + body, "test.s")), execute=execute, **options)
    if prepare is not None:
        prepare(sim.memories.arrays)
    return sim, sim.run()


def conv(**changes):
    return "".join(f"cfg c0.{name}, {value}\n" for name, value in (CONV | changes).items())


def test_forward_look_up():
    taps, groups, positions = 9, 5, 40
    for shape, lanes_k in enumerate((16, 32, 64, 128, 256)):
        for machine in (V0, EDGE):
            passes = -(-40 // lanes_k) * -(-positions // (machine.forward.lanes // lanes_k))
            expected = START_UP["FE"] + passes * taps * groups
            assert static_cycles("fe.run", CONV | {"planes": 0}, {"shape": shape}, machine) == expected


SKIPPING = load_machine("h2l-edge:forward.skip_zero_patterns=true")


@pytest.mark.parametrize("execute", ["reference", "fast"])
@pytest.mark.parametrize(
    ("bits", "k", "busiest"),
    [
        ([0xFF] * 32, 16, 2 * 32),  # 32 positions of 32 patterns on 16 lanes
        ([0x11] * 16 + [0] * 16, 16, 32 + 1),  # one cycle to see that a position is empty
        ([0x11] * 17 + [0] * 15, 16, 2 * 32),
        ([0x01] * 32, 16, 2 * 16),
        ([0x01] * 32, 17, 2 * 2 * 16),  # 17 output channels take two passes
        ([0] * 32, 16, 2),
    ],
)
def test_forward_look_up_that_skips_zero_patterns(execute, bits, k, busiest):
    """Lanes take positions as they come free: a position costs its patterns with a spike, or its search."""
    body = conv(imgs=1, oh=4, ow=8, kh=1, kw=1, c=128, k=k) + "addr a1, A, 0\naddr a2, S, 0\naddr a3, L, 0\n"
    body += "addr a4, W, 0\nfe.fill lut=a3, w=a4, desc=c0\n"
    body += "fe.run acc=a1, s=a2, lut=a3, desc=c0, init=0, shape=16x128\nhalt\n"
    reports, sums = [], []
    for machine in (EDGE, SKIPPING):
        program = assemble(HEAD + body, "test.s")
        program.note |= new_note(machine)
        sim = Simulator(load(program), execute=execute, sanitize=())
        rng = np.random.default_rng(0)
        sim.memories.arrays["W"][: 512 * k].view(np.float32)[:] = rng.standard_normal(128 * k)
        sim.memories.arrays["S"][: 16 * 32] = np.repeat(np.array(bits, np.uint8), 16)
        reports.append(sim.run())
        sums.append(sim.memories.arrays["A"].tobytes())
    dense, skipping = reports
    assert sums[0] == sums[1]
    assert dense.busy["FE"] == START_UP["FE"] + -(-k // 16) * 2 * 32
    assert skipping.busy["FE"] == START_UP["FE"] + busiest
    assert skipping.energy.parts_pj == dense.energy.parts_pj
    assert skipping.cycles - dense.cycles == skipping.busy["FE"] - dense.busy["FE"]


def test_table_builder():
    assert static_cycles("fe.fill", CONV, {}, V0) == BUILDER_START_UP + 106  # 9*5*40 tables of 15 entries, 256 a cycle
    assert static_cycles("fe.fill", CONV | {"fan": 2}, {}, V0) == BUILDER_START_UP + 38  # 9*9*40 of 3


def test_weight_update():
    assert static_cycles("wu.run", CONV, {}, V0) == START_UP["WUE"] + 2 * 3 * 10  # ceil(40/32), ceil(162/64), 40/4
    assert static_cycles("wu.run", CONV, {}, EDGE) == START_UP["WUE"] + 10 * 3 * 10


def test_vector_unit():
    vec = {"n": 10, "k": 33, "steps": 3}
    assert static_cycles("v.lif", vec, {}, EDGE) == START_UP["VEC"] + 11
    assert static_cycles("v.reduce", vec, {}, EDGE) == START_UP["VEC"] + 31
    assert static_cycles("v.rng", vec, {}, EDGE) == START_UP["VEC"] + 31
    assert static_cycles("v.loss", vec, {}, EDGE) == START_UP["VEC"] + 8 * 11
    assert static_cycles("v.opt", {"n": 65, "kind": 0}, {}, EDGE) == START_UP["VEC"] + 3
    pool = {"imgs": 2, "oh": 3, "ow": 5, "kh": 2, "kw": 2, "k": 8}
    assert static_cycles("v.pool", pool, {}, EDGE) == START_UP["VEC"] + 30


def test_backward_engine_depends_on_the_bitmaps():
    body = (
        conv(imgs=1, oh=1, ow=8, kh=1, kw=1, c=64, k=64, gh=1, gw=8) + "addr a1, A, 0\naddr a2, G, 0\naddr a3, W, 0\n"
    )
    slot = 8 + 64 * 4

    def bitmaps(live):
        def prepare(arrays):
            for position, bits in enumerate(live):
                arrays["G"][slot * position : slot * position + 8].view(np.uint64)[0] = bits

        return prepare

    for live, busiest in (
        ([1] * 8, 2),
        ([0] * 8, 0),
        ([255, 0, 0, 0, 255, 0, 0, 0], 8),  # 2 x 4 rows of 16 outputs, each on a lane of its own
        ([3, 255, 0, 0, 0, 0, 0, 0], 8),
        ([3, 3, 3, 3, 255, 0, 0, 0], 2 + 8),  # the 16 lanes are free again after two cycles
    ):
        for mode, cycles in (("in", busiest), ("dense", 2 * 64)):
            step = f"be.run acc=a1, g=a2, w=a3, m=a0, desc=c0, init=0, mode={mode}, masked=no\nhalt\n"
            _, report = run(body + step, bitmaps(live), sanitize=())
            assert report.busy["BE"] == START_UP["BE"] + cycles, (live, mode)


def test_transfers_take_latency_and_whole_bursts():
    for run_bytes, rows, stride, moved in (
        (1, 1, 0, 64),
        (64, 1, 0, 64),
        (65, 1, 0, 128),
        (16, 8, 100, 512),
        (16, 8, 16, 128),
    ):
        body = DMA + f"cfg x0.run, {run_bytes}\ncfg x0.n1, {rows}\ncfg x0.ss1, {stride}\ncfg x0.ds1, {run_bytes}\n"
        _, report = run(body + LOAD + "halt\n")
        assert report.busy["DMAIN"] == -(-moved // 25.6)
        assert report.by_pc[-2].last_cycle - report.by_pc[-2].first_cycle == 100 + -(-moved // 25.6)
        assert report.busy["DRAM"] == -(-moved // 25.6)
        assert report.bytes_read == {"DRAM": run_bytes * rows}


def test_rows_that_do_not_exist_move_nothing():
    body = DMA + "cfg x0.run, 64\ncfg x0.n2, 8\ncfg x0.ss2, 64\ncfg x0.ds2, 64\ncfg x0.ylim, 3\n"
    _, report = run(body + LOAD + "halt\n")
    assert report.bytes_read == {"DRAM": 192} and report.bytes_written == {"U": 512}
    assert report.busy["DRAM"] == -(-192 // 25.6)


def test_slots_move_their_live_values_only():
    slot = 8 + 64 * 4
    body = DMA + f"cfg x0.mode, slots\ncfg x0.run, {2 * slot}\ncfg x0.slot, {slot}\ncfg x0.item, 4\n"

    def prepare(arrays):
        arrays["DRAM"][:8].view(np.uint64)[0] = 0b111
        arrays["DRAM"][slot : slot + 8].view(np.uint64)[0] = (1 << 20) - 1

    _, report = run(body + LOAD + "halt\n", prepare)
    assert report.bytes_read == {"DRAM": (8 + 3 * 4) + (8 + 20 * 4)}
    assert report.bytes_written == {"U": (8 + 3 * 4) + (8 + 20 * 4)}
    assert report.busy["DRAM"] == -(-(64 + 128) // 25.6)


@pytest.mark.parametrize(("channels", "item", "bitmap"), [(64, 2, 8), (32, 2, 4), (32, 4, 4), (12, 2, 2), (8, 2, 1)])
@pytest.mark.parametrize("execute", ["fast", "reference"])
def test_of_a_bitmap_the_bytes_that_have_channels_move(channels, item, bitmap, execute):
    slot, count = 8 + channels * item, 10
    body = DMA + f"cfg x0.mode, slots\ncfg x0.run, {count * slot}\ncfg x0.slot, {slot}\ncfg x0.item, {item}\n"

    def prepare(arrays):
        for n in range(count):
            arrays["DRAM"][slot * n : slot * n + 8].view(np.uint64)[0] = 0b101

    _, report = run(body + f"cfg x0.pack, {count}\n" + LOAD + "halt\n", prepare, execute=execute)
    moved = count * (bitmap + 2 * item)
    assert report.bytes_read == {"DRAM": moved}
    assert report.busy["DRAM"] == -(-64 * -(-moved // 64) // 25.6)


def test_slots_that_are_packed_share_bursts():
    slot = 8 + 64 * 4

    def prepare(arrays):
        for memory in ("DRAM", "U"):
            for n in range(12):
                arrays[memory][slot * n : slot * n + 8].view(np.uint64)[0] = 0b111

    for pack, count, apart, bursts in (
        (0, 6, 0, 6),
        (2, 6, 0, 3),
        (4, 6, 0, 3),
        (4, 3, 6, 2),
        (4, 3, 3, 3),
        (8, 4, 6, 4),
    ):
        body = DMA + f"cfg x0.mode, slots\ncfg x0.run, {count * slot}\ncfg x0.slot, {slot}\ncfg x0.item, 4\n"
        if apart:  # two rows, side by side on the chip and apart in DRAM
            body += f"cfg x0.n1, 2\ncfg x0.ss1, {apart * slot}\ncfg x0.ds1, {count * slot}\n"
        body += f"cfg x0.pack, {pack}\n"
        _, report = run(body + LOAD + "halt\n", prepare)
        assert report.busy["DRAM"] == -(-64 * bursts // 25.6), (pack, count)
        assert report.bytes_read == {"DRAM": count * (2 if apart else 1) * (8 + 3 * 4)}
        back = body.replace("x0.ss1", "x0.other").replace("x0.ds1", "x0.ss1").replace("x0.other", "x0.ds1")
        _, report = run(back + STORE + "halt\n", prepare)
        assert report.busy["DRAM"] == -(-64 * bursts // 25.6), "a store rounds by what touches in DRAM"


def test_both_directions_share_the_channel():
    body = DMA + "cfg x0.run, 2560\n" + LOAD + "fence\n" + STORE + "addr a2, U, 8192\n" + LOAD + "halt\n"
    _, report = run(body, sanitize={"race", "bounds"})
    assert report.busy["DRAM"] == 300
    assert report.stalls["DMAIN"]["DRAM channel"] == 100 - 2, "the load starts two cycles after the store"
    assert report.busy["DMAIN"] == 2 * 100 and report.busy["DMAOUT"] == 100


def test_the_latency_of_a_transfer_passes_behind_the_bytes_of_the_one_before():
    body = DMA + "cfg x0.run, 2560\n" + LOAD + "addr a2, U, 8192\n" + LOAD + "halt\n"
    sim, report = run(body, trace=True)
    first, second = sim.spans
    assert first.end - first.start == 100 + 100
    assert (second.start, second.end) == (first.end - 100, first.end + 100)
    assert report.busy["DMAIN"] == report.busy["DRAM"] == 200


FE = "addr a1, A, 0\naddr a2, S, 0\naddr a3, L, 0\naddr a4, W, 0\naddr a5, L, 32768\n"
FILL, RUN = "fe.fill lut={}, w=a4, desc=c0\n", "fe.run acc=a1, s=a2, lut={}, desc=c0, init=0, shape=16x128\n"


def look_up(second_table):
    small = conv(imgs=1, oh=8, ow=8, kh=1, kw=1, c=4, k=16)
    body = small + FE + FILL.format("a3") + RUN.format("a3") + FILL.format(second_table) + RUN.format(second_table)
    return run(body + "halt\n", sanitize={"race"}, trace=True)


def test_the_builder_works_beside_the_look_up_of_another_table():
    fill, look = BUILDER_START_UP + 15, START_UP["FE"] + 4
    for table, overlap in (("a5", True), ("a3", False)):
        sim, report = look_up(table)
        spans = [(span.track, span.start, span.end) for span in sim.spans]
        start = spans[0][1]
        second = start + fill + (0 if overlap else look)
        assert spans[1] == ("FE", start + fill, start + fill + look)
        assert spans[2] == ("FE.fill", second, second + fill)
        assert spans[3][1] == max(second + fill, start + fill + look)
        assert report.findings == [] and report.cycles == spans[3][2]
        assert report.busy["FE.fill"] == 2 * fill and report.busy["FE"] == 2 * look


def test_a_signal_waits_for_both_units():
    small = conv(imgs=4, oh=8, ow=8, kh=3, kw=3, c=4, k=16)
    body = (
        small
        + FE
        + FILL.format("a3")
        + RUN.format("a3")
        + FILL.format("a5")
        + "signal FE, 1, 1\nwait VEC, 1, 1\nnop VEC\n"
    )
    sim, _ = run(body + "halt\n", sanitize=(), trace=True)
    spans = {(span.track, span.pc): span for span in sim.spans}
    nop = next(span for (track, _), span in spans.items() if track == "VEC")
    assert nop.start == max(span.end for (track, _), span in spans.items() if track != "VEC")


def test_engines_overlap_and_the_bound_is_the_busiest():
    body = "loop 20\nnop FE\nnop BE\nnop VEC\nendl\nhalt\n"
    _, report = run(body)
    assert report.busy["FE"] == report.busy["BE"] == report.busy["VEC"] == report.bound == 20
    assert report.cycles == 1 + 20 * 4 + 1
    assert report.stalls["FE"]["queue empty"] == 2 + 19 * 3


def test_busy_cycles_by_source_add_up():
    lines = (
        DMA
        + "cfg x0.run, 64\n"
        + '.loc "net.snn:1:1", ""\n'
        + LOAD
        + LOAD
        + '.loc "net.snn:2:1", ""\n'
        + LOAD
        + "halt\n"
    )
    _, report = run(lines)
    table = report.by_source()
    assert table["net.snn:1:1"]["DMAIN"] == 2 * table["net.snn:2:1"]["DMAIN"]
    assert sum(row["DMAIN"] for row in table.values()) == report.busy["DMAIN"]


def test_energy_is_counts_times_the_table():
    work = {"fe.fill": {"adds": 10}, "fe.run": {"adds": 1000}, "be.run": {"macs": 100}}
    report = energy_of(V0, 2, work, {"DRAM": 1000, "W": 10}, {"DRAM": 24, "L": 100})
    table = load_profile("28nm-hbm2")
    assert report.parts_pj["FE"] == pytest.approx(1010 * 0.459 + 1000 * 16 * table["table_read"])
    assert report.parts_pj["BE"] == pytest.approx(100 * (0.561 + 0.459))
    assert report.parts_pj["DRAM"] == pytest.approx(1024 * 8 * 3.92)
    assert report.parts_pj["W"] == pytest.approx(80 * 0.128) and report.parts_pj["WUE"] == 0
    assert report.total_pj == sum(report.parts_pj.values())
    assert any("Horowitz" in text for text in report.assumptions) and report.profile == "28nm-hbm2"
    wide = energy_of(V0, 4, work, {}, {})
    assert wide.parts_pj["BE"] == pytest.approx(100 * (1.887 + 0.459))


def test_the_profile_follows_the_machine():
    assert (profile_for(V0).name, profile_for(EDGE).name) == ("28nm-hbm2", "28nm-lpddr4")
    _, report = run(DMA + "cfg x0.run, 64\n" + LOAD + "halt\n")
    assert report.energy.parts_pj["DRAM"] == 64 * 8 * 8.0
    assert report.energy_pj == report.energy.total_pj > 0
