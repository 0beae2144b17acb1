"""The event loop gives the same run however its entries reach it and whoever executes the transfers."""

import numpy as np
import pytest

from h2learn.backends.h2learn.assembler import assemble
from h2learn.runtime import simulator
from h2learn.runtime.loader import load
from h2learn.runtime.simulator import Simulator

HEAD = ".machine h2l-edge\n.data 0x1000\n.zero 8192\n.bss 0x4000, 8192\n.text\n"
ROWS = "".join(f"cfg x0.{name}, {value}\n" for name, value in {"n0": 1, "n1": 1, "n2": 3, "n3": 2}.items())
PADDED = ROWS + "cfg x0.run, 24\ncfg x0.ss2, 48\ncfg x0.ss3, 24\ncfg x0.ds2, 48\ncfg x0.ds3, 24\n"
SLOTS = "cfg x0.mode, slots\ncfg x0.slot, 24\ncfg x0.item, 4\n"


def program(rng, *, slots):
    """Two streams: rows go on chip and back over a ring, beside vector work; rows and columns outside are padding."""
    count, ring = int(rng.integers(3, 9)), int(rng.integers(1, 4))
    limits = f"cfg x0.ylim, {rng.integers(2, 5)}\ncfg x0.xlim, {rng.integers(1, 4)}\n"
    place = f"addr a2, {'G' if slots else 'U'}, 0\ncfg a2.step0, 1\ncfg a2.ring, {ring}\ncfg a2.rbytes, 144\n"
    setup = PADDED + limits + (SLOTS if slots else "") + place + f"addr a5, DRAM, {rng.integers(-1, 2)}\n"
    get = setup + "addr a1, DRAM, 0x1000\ncfg a1.stride0, 144\n"
    get += (
        f"loop {count}\nwait DMAIN, 2, 1\nld dst=a2, src=a1, y=a5, x=a0, desc=x0\nsignal DMAIN, 1, 1\nnop VEC\nendl\n"
    )
    put = setup + f"addr a3, DRAM, 0x4000\ncfg a3.stride0, 144\nsignal DMAOUT, 2, {ring}\n"
    put += f"loop {count}\nwait DMAOUT, 1, 1\nst dst=a3, src=a2, y=a5, x=a0, desc=x0\nsignal DMAOUT, 2, 1\nendl\n"
    return load(assemble(HEAD + f"fork 2 {{\n{put}halt\n}}\n{get}fence\nnop BE\nhalt\n", "test.s"))


def report(loaded, runs=1, **options):
    sim = Simulator(loaded, **options)
    data = np.random.default_rng(1).integers(0, 256, 8192, dtype=np.uint8)
    found = {}
    for _ in range(runs):
        sim.memories.arrays["DRAM"][:8192] = data
        sim.memories.arrays["DRAM"][8192:] = 0
        found = sim.run().to_dict()
    return found, sim.memories.arrays["DRAM"].copy()


@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_every_way_gives_the_same_run(seed, slots, monkeypatch):
    loaded = program(np.random.default_rng(seed), slots=slots)
    wanted, memory = report(loaded, execute="reference", sanitize=())
    ways = [{"execute": "fast", "sanitize": ()}, {"execute": "fast"}, {"execute": "fast", "sanitize": (), "runs": 3}]
    for fetch, recorded in ((1 << 12, 1 << 16), (1, 1 << 16), (3, 4)):
        monkeypatch.setattr(simulator, "_FETCH", fetch)
        monkeypatch.setattr(simulator, "_MAX_RECORDED", recorded)
        for way in ways:
            found, other = report(loaded, **way)
            findings = found.pop("findings")
            assert [item for item in findings if item["other_pc"] >= 0] == []
            assert found == {name: value for name, value in wanted.items() if name != "findings"}
            assert (other == memory).all()


def test_more_signals_wait_than_there_is_room_for():
    """While a transfer takes its time, the signals behind it, of which there are many, all wait for its end."""
    work = "".join(f"cfg x0.{name}, 1\n" for name in ("n0", "n1", "n2", "n3", "ylim", "xlim")) + "cfg x0.run, 8192\n"
    work += "addr a1, DRAM, 0x1000\naddr a2, U, 0\nld dst=a2, src=a1, y=a0, x=a0, desc=x0\n"
    many = "loop 5000\nsignal DMAIN, 1, 1\nendl\nloop 5000\nwait VEC, 1, 1\nendl\nnop VEC\nhalt\n"
    machine = load(assemble(HEAD.replace("h2l-edge", "h2l-v0") + work + many, "test.s"))
    found = Simulator(machine, sanitize={"race"}).run()
    assert found.findings == [] and found.executed["wait"] == 5000
