"""Front end, placing of arguments, faults; and emission of the same module."""

from __future__ import annotations

import numpy as np
import pytest
from xdsl.dialects import builtin

from h2learn.backends.h2learn.assembler import assemble, objdump
from h2learn.backends.h2learn.emit import emit
from h2learn.backends.h2learn.encoder import decode_program
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.machine import load_machine
from h2learn.backends.h2learn.object_file import read_object, write_object
from h2learn.dialects import h2
from h2learn.dialects.common import IoEntry, file_location, set_io
from h2learn.dialects.h2.interpreter import interpret, run_program
from h2learn.dialects.h2.layouts import Memory

COPY = """
addr a{to}, DRAM, {base}
cfg x0.run, 1
cfg x0.n0, 1
cfg x0.n1, 1
cfg x0.n2, 1
cfg x0.n3, 1
cfg x0.ylim, 1
cfg x0.xlim, 1
"""


def ops_of(text: str) -> list[h2.InstructionOp]:
    program = decode_program(assemble(text).text)
    return [h2.build(d.mnemonic, file_location("net.snn", 1 + pc, 1), **d.fields) for pc, d in enumerate(program)]


def test_address_registers_follow_loops_and_rings() -> None:
    text = (
        COPY.format(to=1, base=0x100)
        + """
    addr a2, DRAM, 0
    cfg a1.stride0, 16
    cfg a1.stride1, 3
    cfg a1.step1, 3
    cfg a1.step0, 1
    cfg a1.ring, 4
    cfg a1.rbytes, 0x40
    cfg a2.stride1, 1
    cfg a2.stride0, 5
    loop 2
      loop 5
        ld dst=a1, src=a2, y=a0, x=a0, desc=x0
      endl
      loop 0
        ld dst=a0, src=a2, y=a0, x=a0, desc=x0
      endl
    endl
    halt
    """
    )
    dram = Memory("DRAM", 0x300, fill=0)
    dram.view(0, 16)[:] = range(1, 17)
    run_program(ops_of(text), dram)
    expected = np.zeros(0x300, np.uint8)
    expected[:16] = range(1, 17)
    for i in range(2):
        for j in range(5):
            expected[0x100 + 16 * i + 3 * j + (i + 3 * j) % 4 * 0x40] = 1 + 5 * i + j
    assert (dram.view(0, 0x300) == expected).all()


def test_addr_clears_strides_and_fields_stay_configured() -> None:
    text = (
        COPY.format(to=1, base=0x10)
        + """
    cfg a1.stride0, 4
    cfg a1.ring, 2
    addr a1, DRAM, 0x20
    loop 2
      ld dst=a1, src=a0, y=a0, x=a0, desc=x0
    endl
    halt
    """
    )
    dram = Memory("DRAM", 0x30, fill=0)
    dram.view(0, 1)[:] = 9
    run_program(ops_of(text), dram)
    assert np.flatnonzero(dram.view(0, 0x30)).tolist() == [0, 0x20]


@pytest.mark.parametrize(("init", "fresh"), [("0", 6), ("0x1", 3), ("0x2", 2), ("0x3", 1), ("0x100", 0), ("0x103", 0)])
def test_init_looks_at_the_first_iteration_of_its_levels(init: str, fresh: int) -> None:
    """Each run adds 1 to a bias that starts at 100, or starts again at 0; a copy per run goes to its own place."""
    text = f"""
    cfg v0.n, 1
    cfg v0.k, 1
    cfg v0.gblk, 1
    addr a1, DRAM, 0
    addr a2, DRAM, 0x10
    loop 2
      loop 3
        v.reduce dst=a1, src=a2, desc=v0, init={init}
      endl
    endl
    halt
    """.replace("cfg v0.n, 1", "cfg v0.kind, bias\ncfg v0.n, 1")
    dram = Memory("DRAM", 0x40, fill=0)
    dram.view(0, 4)[:] = np.frombuffer(np.float32(100).tobytes(), np.uint8)
    dram.view(0x10, 12)[:] = np.frombuffer((1).to_bytes(8, "little") + np.float32(1).tobytes(), np.uint8)
    run_program(ops_of(text), dram)
    value = 100.0
    runs = [(i, j) for i in range(2) for j in range(3)]
    first = {"0": lambda i, j: True, "0x1": lambda i, j: i == 0, "0x2": lambda i, j: j == 0}
    first |= {"0x3": lambda i, j: i == j == 0, "0x100": lambda i, j: False, "0x103": lambda i, j: False}
    assert sum(first[init](*run) for run in runs) == fresh
    for run in runs:
        value = (0 if first[init](*run) else value) + 1
    assert np.frombuffer(dram.view(0, 4).tobytes(), "<f4")[0] == value


def sgd_module() -> builtin.ModuleOp:
    """p -= lr * g with a storage copy; a symbol of every dtype."""
    text = """
    addr a1, DRAM, 0x1000
    addr a2, DRAM, 0x2000
    addr a3, DRAM, 0x1100
    addr a4, DRAM, 0x2100
    addr a5, DRAM, 0x2200
    cfg o0.n, 3
    cfg o0.kind, sgd
    cfg o0.dtype, f16
    cfg o0.scale, 1.0
    signal VEC, 0, 1
    wait VEC, 0, 1
    v.opt p=a1, g=a2, mom=a4, sq=a4, w=a3, scal=a5, desc=o0
    halt
    """
    ops = ops_of(text)
    for op in ops[5:9]:
        op.location = file_location("net.snn", 50, 2)
        op.attributes["loops"] = builtin.StringAttr("t")
    module = h2.program_module(ops)
    module.attributes["h2learn.precision"] = builtin.StringAttr("fp16")
    module.attributes["h2learn.gradient_scale"] = builtin.FloatAttr(1024.0, 64)
    symbol = h2.TensorSymbol
    symbols = [
        symbol("p", 0x1000, 12, "data", "f32", (3,), shadow="p.f16"),
        symbol("p.f16", 0x1100, 6, "data", "f16", (3,)),
        symbol("g", 0x2000, 12, "bss", "f32", (3, 1)),
        symbol("bits", 0x2100, 4, "bss", "bits", (2, 11)),
        symbol("scalars", 0x2200, 32, "bss", "scalars", (8,)),
        symbol("winners", 0x2300, 2, "bss", "u8", (2,)),
        symbol("label", 0x2310, 8, "bss", "i32", (2,)),
        symbol("const", 0x4000, 4, "rodata", "f16", (2,), contents=np.array([1.5, -2], "<f2").tobytes()),
    ]
    arguments = ["g", "bits", "winners", "label", "p", "scalars"]
    results = ["p", "p.f16", "bits", "winners", "label", "const"]
    entries = [IoEntry(n, "input") for n in arguments[:3]] + [IoEntry("label", "label"), IoEntry("p", "parameter")]
    entries += [IoEntry("scalars", "scalars"), IoEntry("p", "parameter", (1, 3), (1, 0))]
    entries += [IoEntry(n, "output") for n in results[1:]]
    set_io(module, entries)
    h2.set_symbols(module, symbols, arguments + results)
    return module


def test_arguments_and_results_lie_in_their_layouts() -> None:
    rng = np.random.default_rng(0)
    scalars = np.zeros(8, np.int32)
    scalars[:1] = np.array([0.5], np.float32).view(np.int32)
    g, p = rng.normal(size=(3, 1)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    bits, winners, label = rng.random((2, 11)) < 0.5, np.array([3, 200], np.uint8), np.array([-1, 70000], np.int32)
    results = interpret(sgd_module(), [g, bits, winners, label, p, scalars])
    expected = p - np.float32(0.5) * g[:, 0]
    wanted_results = [expected, expected.astype(np.float16).astype(np.float32), bits, winners, label]
    wanted_results.append(np.array([1.5, -2], np.float32))
    for got, wanted in zip(results, wanted_results, strict=True):
        assert got.dtype == wanted.dtype
        assert (got == wanted).all()


def test_a_storage_copy_is_made_in_its_planes() -> None:
    module = h2.program_module(ops_of("halt"))
    module.attributes["h2learn.precision"] = builtin.StringAttr("fp16")
    symbols = [
        h2.TensorSymbol("w", 0x1000, 48, "data", "f32", (2, 6), shadow="copy"),
        h2.TensorSymbol("copy", 0x1040, 24, "data", "f16", (2, 6), plane=2),
        h2.TensorSymbol("bytes", 0x1040, 24, "data", "f16", (12,)),
    ]
    h2.set_symbols(module, symbols, ["w", "bytes"])
    set_io(module, [IoEntry("w", "parameter"), IoEntry("bytes", "output")])
    values = np.arange(12, dtype=np.float32).reshape(2, 6)
    in_planes = np.array([0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11], np.float32)
    assert (interpret(module, [values])[0] == in_planes).all()
    obj = emit(module, {"w": values}, load_machine("h2l-edge"))
    assert obj.data[0x40:0x58] == in_planes.astype("<f2").tobytes()
    assert obj.note["io"][0]["shadow_plane"] == 2
    lines = [line.split() for line in objdump(obj).splitlines()]
    assert ["storage", "copy,", "in", "planes", "of", "2", "channels", "copy"] in lines


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(H2LearnError, match="'g'"):
        interpret(sgd_module(), [np.zeros(4, np.float32)])


def test_faults_name_pc_and_source() -> None:
    ops = ops_of("cfg o0.n, 1\naddr a1, S, -8\nv.opt p=a1, g=a1, mom=a1, sq=a1, w=a1, scal=a1, desc=o0\nhalt")
    with pytest.raises(H2LearnError) as caught:
        run_program(ops, Memory("DRAM", 16))
    assert caught.value.location == "pc 2 (net.snn:3:1)"


def test_emission_carries_everything() -> None:
    module = sgd_module()
    values = np.array([1, 2, 1 / 3], np.float32)
    obj = emit(module, {"p": values}, load_machine("h2l-edge"), batch=4, time_steps=2)
    assert read_object(write_object(obj)) == obj
    assert [d.mnemonic for d in decode_program(obj.text)] == [op.mnemonic for op in h2.program_ops(module)]
    assert obj.bases == {"rodata": 0x4000, "data": 0x1000, "bss": 0x2000}
    assert obj.rodata == np.array([1.5, -2], "<f2").tobytes()
    assert obj.data[:12] == values.tobytes()
    assert obj.data[0x100:] == values.astype("<f2").tobytes()
    assert obj.bss_size == 0x318
    assert obj.symbols["bits"].address == 0x2100
    wanted = {"precision": "fp16", "batch": 4, "time_steps": 2, "training": True, "gradient_scale": 1024.0}
    assert {key: obj.note[key] for key in wanted} == wanted
    entry = {"name": "p", "role": "parameter", "symbol": "p", "dtype": "f32", "shape": [3], "view": [], "perm": []}
    assert obj.note["io"][4] == entry | {"shadow": "p.f16"}
    assert (5, 8, "net.snn:50:2", "t") in obj.locations
    assert [entry[:2] for entry in obj.locations] == [(pc, pc) for pc in range(5)] + [(5, 8)] + [
        (pc, pc) for pc in range(9, 13)
    ]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"q": b""}, "no symbol 'q'"),
        ({"p": np.zeros(3)}, "takes 12 bytes, found 24"),
        ({"g": bytes(12)}, "cannot have initial contents"),
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(H2LearnError, match=message):
        emit(sgd_module(), parameters, load_machine("h2l-v0"))  # type: ignore[arg-type]
