"""The front end, the queues, the semaphores and the faults of the simulator, on hand-written programs."""

import json

import numpy as np
import pytest

from h2learn.backends.h2learn.assembler import assemble
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.runtime.loader import load
from h2learn.runtime.simulator import Simulator
from h2learn.runtime.trace import chrome_trace, write_trace

HEAD = """
.machine h2l-edge
.data 0x1000
.hex 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
.bss 0x2000, 256
.symbol "source", data, 0x1000, 32
.symbol "target", bss, 0x2000, 256
.text
"""

COPY = """
cfg x0.run, 4
cfg x0.n0, 1
cfg x0.n1, 1
cfg x0.n2, 1
cfg x0.n3, 1
cfg x0.ylim, 1
cfg x0.xlim, 1
addr a1, DRAM, 0x1000
addr a2, U, 0
addr a3, DRAM, 0x2000
"""


def simulator(body, **options):
    options.setdefault("execute", "reference")
    return Simulator(load(assemble(HEAD + body, "test.s")), **options)


def target(sim, count):
    return sim.memories.arrays["DRAM"][0x1000 : 0x1000 + count].tolist()


LOAD, STORE = "ld dst=a2, src=a1, y=a0, x=a0, desc=x0", "st dst=a3, src=a2, y=a0, x=a0, desc=x0"
HANDSHAKE = f"{LOAD}\nsignal DMAIN, 1, 1\nwait DMAOUT, 1, 1\n{STORE}\nsignal DMAOUT, 2, 1\nwait DMAIN, 2, 1\n"


def test_data_moves_through_the_chip():
    sim = simulator(COPY + HANDSHAKE + "halt\n")
    report = sim.run()
    assert target(sim, 5) == [0, 1, 2, 3, 0]
    assert report.executed == {"addr": 3, "cfg": 7, "halt": 1, "ld": 1, "signal": 2, "st": 1, "wait": 2}
    assert report.instructions == 17 and report.dispatched == 6
    assert report.bytes_read == {"DRAM": 4, "U": 4} and report.bytes_written == {"DRAM": 4, "U": 4}
    assert report.findings == []


def test_nested_loops_step_address_registers_by_level():
    body = COPY + "cfg x0.run, 1\ncfg a1.stride0, 8\ncfg a1.stride1, 1\ncfg a3.stride0, 2\ncfg a3.stride1, 1\n"
    sim = simulator(body + f"loop 3\nloop 2\n{HANDSHAKE}endl\nendl\nhalt\n")
    report = sim.run()
    assert target(sim, 7) == [0, 1, 8, 9, 16, 17, 0]
    assert report.executed["ld"] == 6 and report.executed["endl"] == 6 + 3 and report.executed["loop"] == 1 + 3
    assert report.findings == []


def test_negative_strides_go_backwards():
    body = COPY + "cfg x0.run, 1\naddr a1, DRAM, 0x1003\ncfg a1.stride0, -1\ncfg a3.stride0, 1\n"
    sim = simulator(body + f"loop 4\n{HANDSHAKE}endl\nhalt\n")
    sim.run()
    assert target(sim, 5) == [3, 2, 1, 0, 0]


def test_rings_wrap_around_and_sum_over_levels():
    body = COPY + "cfg x0.run, 1\ncfg a1.step0, 2\ncfg a1.step1, 1\ncfg a1.ring, 3\ncfg a1.rbytes, 10\n"
    sim = simulator(body + f"cfg a3.stride0, 2\ncfg a3.stride1, 1\nloop 3\nloop 2\n{HANDSHAKE}endl\nendl\nhalt\n")
    sim.run()
    expected = [10 * ((2 * i + j) % 3) for i in range(3) for j in range(2)]
    assert target(sim, 6) == expected


def test_addr_clears_strides_and_rings():
    body = COPY + "cfg a1.stride0, 7\ncfg a1.step0, 1\ncfg a1.ring, 4\ncfg a1.rbytes, 1\naddr a1, DRAM, 0x1000\n"
    sim = simulator(body + f"cfg x0.run, 1\ncfg a3.stride0, 1\nloop 3\n{HANDSHAKE}endl\nhalt\n")
    sim.run()
    assert target(sim, 3) == [0, 0, 0]


def test_a_loop_of_no_iterations_is_skipped_with_all_it_contains():
    sim = simulator(COPY + f"loop 0\nloop 3\n{HANDSHAKE}endl\nendl\n{HANDSHAKE}halt\n")
    report = sim.run()
    assert report.executed["ld"] == 1 and report.executed["loop"] == 1 and "endl" not in report.executed
    assert target(sim, 4) == [0, 1, 2, 3]


def test_queued_work_keeps_the_descriptor_and_addresses_of_its_dispatch():
    body = COPY + f"wait DMAIN, 9, 1\n{LOAD}\nsignal DMAIN, 1, 1\nwait DMAOUT, 1, 1\n{STORE}\n"
    sim = simulator(body + "cfg x0.run, 1\naddr a1, DRAM, 0x1010\naddr a2, U, 64\nsignal VEC, 9, 1\nhalt\n")
    sim.run()
    assert target(sim, 4) == [0, 1, 2, 3]


def test_init_masks_look_at_their_levels_only():
    setup = """
cfg v0.n, 1
cfg v0.k, 1
cfg v0.steps, 1
cfg v0.kind, bias
cfg v0.gblk, 1
cfg x0.run, 16
cfg x0.n0, 1
cfg x0.n1, 1
cfg x0.n2, 1
cfg x0.n3, 1
cfg x0.ylim, 1
cfg x0.xlim, 1
addr a1, DRAM, 0x1000
addr a2, G, 0
addr a4, A, 0
addr a3, DRAM, 0x2000
ld dst=a2, src=a1, y=a0, x=a0, desc=x0
signal DMAIN, 1, 1
wait VEC, 1, 1
cfg x0.run, 4
"""
    tail = "signal VEC, 2, 1\nwait DMAOUT, 2, 1\nst dst=a3, src=a4, y=a0, x=a0, desc=x0\nhalt\n"
    one = np.frombuffer(np.float32(1).tobytes(), np.uint8).tolist()
    slot = "01" + "00" * 7 + bytes(one).hex() + "00" * 4
    for mask, count in (("0x0", 1.0), ("0x1", 4.0), ("0x2", 3.0), ("0x3", 6.0)):
        body = setup + f"loop 2\nloop 3\nv.reduce dst=a4, src=a2, desc=v0, init={mask}\nendl\nendl\n" + tail
        sim = simulator(body)
        sim.memories.arrays["DRAM"][:16] = np.frombuffer(bytes.fromhex(slot), np.uint8)
        report = sim.run()
        summed = sim.memories.arrays["DRAM"][0x1000:0x1004].view(np.float32)[0]
        assert summed == count, mask
        assert report.findings == []


def test_init_looks_at_a_level_that_is_not_open():
    body = COPY + "loop 1\nv.reduce dst=a4, src=a2, desc=v0, init=0x2\nendl\nhalt\n"
    with pytest.raises(H2LearnError, match="init looks at loop level 1, but only 1 loops are open"):
        simulator(body)


def test_unbalanced_and_deep_loops_are_refused():
    with pytest.raises(H2LearnError, match="endl closes no loop"):
        simulator("endl\nhalt\n")
    with pytest.raises(H2LearnError, match="never closed"):
        simulator("loop 2\nhalt\n")
    with pytest.raises(H2LearnError, match="deeper than 8"):
        simulator("loop 1\n" * 9 + "endl\n" * 9 + "halt\n")
    simulator("loop 1\n" * 8 + "endl\n" * 8 + "halt\n").run()


def test_one_instruction_per_cycle_in_the_front_end():
    assert simulator("loop 10\nendl\nhalt\n").run().cycles == 1 + 10 + 1


def test_a_full_queue_stops_the_front_end():
    depth = 16
    body = "wait VEC, 0, 1\n" + "nop VEC\n" * (depth - 1) + "nop VEC\nsignal BE, 0, 1\nhalt\n"
    with pytest.raises(
        H2LearnError, match=r"deadlock: VEC at pc 0 waits.*front end at pc 16 waits for room in the queue of VEC"
    ):
        simulator(body).run()
    shorter = "wait VEC, 0, 1\n" + "nop VEC\n" * (depth - 1) + "signal BE, 0, 1\nhalt\n"
    assert simulator(shorter).run().executed["nop"] == depth - 1


def test_a_full_queue_costs_time_and_says_so():
    slow = "loop 40\nfe.fill lut=a1, w=a2, desc=c0\nendl\nhalt\n"
    setup = "cfg c0.kh, 1\ncfg c0.kw, 1\ncfg c0.c, 1\ncfg c0.k, 1600\ncfg c0.fan, 1\naddr a1, L, 0\naddr a2, W, 0\n"
    report = simulator(setup + slow, sanitize=()).run()
    assert report.stalls["CTRL"]["queue of FE full"] > 1000
    assert report.busy["FE.fill"] == 40 * (100 + 4) and report.busy["FE"] == 0
    assert report.cycles >= report.busy["FE.fill"] == report.bound


def test_fences_wait_for_all_queues():
    sim = simulator(COPY + f"{LOAD}\nfence\n{STORE}\nfence\nhalt\n")
    report = sim.run()
    assert target(sim, 4) == [0, 1, 2, 3] and report.findings == []
    assert report.stalls["CTRL"]["fence"] > 0 and report.cycles > 200


def test_fence_behind_a_wait_that_nothing_can_satisfy():
    with pytest.raises(H2LearnError, match=r"deadlock: FE at pc 0 waits for 2 of semaphore 3, which holds 0; .* fence"):
        simulator("wait FE, 3, 2\nfence\nsignal VEC, 3, 2\nhalt\n").run()


def test_deadlock_names_everybody_who_waits():
    body = "wait FE, 1, 1\nsignal FE, 2, 1\nwait BE, 2, 1\nsignal BE, 1, 1\nsignal VEC, 1, 0x1\nwait FE, 1, 5\nhalt\n"
    with pytest.raises(H2LearnError) as caught:
        simulator(body).run()
    assert "FE at pc 5 waits for 5 of semaphore 1, which holds 1" in caught.value.message
    both = "wait FE, 1, 1\nsignal FE, 2, 1\nwait BE, 2, 1\nsignal BE, 1, 1\nhalt\n"
    with pytest.raises(
        H2LearnError, match=r"FE at pc 0 waits for 1 of semaphore 1.*BE at pc 2 waits for 1 of semaphore 2"
    ):
        simulator(both).run()


def test_semaphores_overflow():
    with pytest.raises(H2LearnError, match="semaphore 4 overflows: 65536"):
        simulator("signal VEC, 4, 65535\nsignal VEC, 4, 1\nhalt\n").run()
    simulator("signal VEC, 4, 65535\nwait VEC, 4, 65535\nsignal VEC, 4, 1\nhalt\n", sanitize=()).run()


def test_signals_post_when_earlier_work_is_complete():
    report = simulator(COPY + f"{LOAD}\nsignal DMAIN, 1, 1\nwait VEC, 1, 1\nnop VEC\nhalt\n").run()
    assert report.cycles == 11 + 100 + 3 + 1, "dispatch, latency, one burst of 64 bytes at 25.6 bytes per cycle, nop"


def test_tokens_wake_the_queue_that_waits():
    report = simulator("wait FE, 1, 1\nwait FE, 1, 1\nnop FE\nnop BE\nsignal VEC, 1, 2\nhalt\n").run()
    assert report.busy["FE"] == report.busy["BE"] == 1 and report.findings == []
    assert report.stalls["FE"] == {"queue empty": 1, "semaphore 1": 4}


def test_accesses_outside_a_memory_name_the_place():
    locations = '.loc "net.snn:3:1", "t, tile"\n'
    body = COPY + "cfg a2.stride1, 60000\n" + f"loop 2\nloop 9\n{locations}{LOAD}\nendl\nendl\nhalt\n"
    for sanitize in ((), ("bounds",)):
        with pytest.raises(H2LearnError) as caught:
            simulator(body, sanitize=sanitize).run()
        assert "(net.snn:3:1, t=0, tile=4)" in str(caught.value.location)
        assert "U" in caught.value.message and "outside" in caught.value.message


def test_engines_cannot_reach_dram():
    body = "cfg v0.n, 1\ncfg v0.k, 1\ncfg v0.steps, 1\naddr a1, U, 0\nv.reduce dst=a1, src=a0, desc=v0, init=0\nhalt\n"
    with pytest.raises(H2LearnError, match="src is in DRAM, which only src of ld and dst of st reach"):
        simulator(body, sanitize=()).run()


def test_programs_end_with_halt():
    with pytest.raises(H2LearnError, match="past its last instruction"):
        simulator("nop FE\n").run()


def test_instruction_limit():
    with pytest.raises(H2LearnError, match="executed 1000 instructions without reaching halt"):
        simulator("loop 0xffffffff\nendl\nhalt\n", max_instructions=1000).run()
    assert simulator("loop 10\nendl\nhalt\n", max_instructions=12).run().instructions == 12
    with pytest.raises(H2LearnError, match="executed 11"):
        simulator("loop 10\nendl\nhalt\n", max_instructions=11).run()


def test_break_points_stop_before_an_instruction():
    sim = simulator(COPY + f"{LOAD}\nfence\n{STORE}\nhalt\n", break_at=12)
    report = sim.run()
    assert report.stopped_at == 12 and "st" not in report.executed
    assert sim.memories.arrays["U"][:4].tolist() == [0, 1, 2, 3] and target(sim, 4) == [0, 0, 0, 0]


def test_memory_persists_from_run_to_run_and_the_rest_does_not():
    sim = simulator(COPY + HANDSHAKE + "halt\n")
    first = sim.run()
    sim.memories.arrays["DRAM"][:4] = 9
    second = sim.run()
    assert target(sim, 4) == [9] * 4
    assert first.to_dict() == second.to_dict()


def test_unknown_execution_and_sanitizer():
    with pytest.raises(H2LearnError, match="no execution 'quick'"):
        simulator("halt\n", execute="quick")
    with pytest.raises(H2LearnError, match="no sanitizer 'leak'"):
        simulator("halt\n", sanitize={"race", "leak"})


def test_traces_have_a_track_per_engine(tmp_path):
    sim = simulator(COPY + '.loc "net.snn:7:1", "t"\nloop 2\n' + HANDSHAKE + "endl\nhalt\n", trace=True)
    report = sim.run()
    write_trace(tmp_path / "trace.json", sim.program, sim.spans)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert events == chrome_trace(sim.program, sim.spans)["traceEvents"]
    tracks = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name"}
    spans = [e for e in events if e["ph"] == "X"]
    assert set(tracks) == {"DMAIN", "DMAOUT"} and len(spans) == 4
    assert spans[2]["name"] == "ld net.snn:7:1" and spans[2]["args"]["where"].endswith("(net.snn:7:1, t=1)")
    assert max(s["args"]["cycle"] + s["args"]["cycles"] for s in spans) == report.cycles
    with pytest.raises(H2LearnError, match="cannot write the trace"):
        write_trace(tmp_path / "missing" / "trace.json", sim.program, sim.spans)


def test_functional_runs_give_the_same_memory():
    timed, untimed = (simulator(COPY + HANDSHAKE + "halt\n", timing=t) for t in (True, False))
    assert timed.run().cycles > untimed.run().cycles
    assert timed.memories.arrays["DRAM"].tobytes() == untimed.memories.arrays["DRAM"].tobytes()


def test_transfers_too_large_to_simulate_are_refused():
    sizes = "cfg x0.n0, 0xffffffff\ncfg x0.n1, 0xffffffff\ncfg x0.n2, 0\n"
    with pytest.raises(H2LearnError, match="is too large"):
        simulator(COPY + sizes + LOAD + "\nhalt\n").run()
