"""Every computing instruction, alone, against formulas written in another way.

Dyadic inputs make all sums exact, so that float64 einsum checks the geometry; scalar loops check order and rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from h2learn.backends.h2learn import numerics
from h2learn.backends.h2learn.assembler import assemble
from h2learn.backends.h2learn.encoder import decode_program
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.dialects.common import file_location
from h2learn.dialects.h2 import build
from h2learn.dialects.h2.interpreter import run_program
from h2learn.dialects.h2.layouts import Memory

PLACE = file_location("test.snn", 1, 1)
STORAGE = {"f32": "<f4", "f16": "<f2"}


class Bench:
    """DRAM with named arrays at fixed distances, and one instruction to run on them."""

    def __init__(self, seed: int = 0) -> None:
        self.dram = Memory("DRAM", 1 << 20, fill=0xEE)
        self.rng = np.random.default_rng(seed)
        self.registers: dict[str, int] = {}
        self.coordinates: dict[str, int] = {}

    def put(self, name: str, raw: bytes) -> None:
        address = self.registers.setdefault(name, 0x1000 + 0x4000 * len(self.registers))
        self.dram.view(address, len(raw))[:] = np.frombuffer(raw, np.uint8)

    def raw(self, name: str, size: int) -> bytes:
        return self.dram.view(self.registers[name], size).tobytes()

    def get(self, name: str, shape: Sequence[int], dtype: str = "<f4") -> np.ndarray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return np.frombuffer(self.raw(name, size), dtype).reshape(shape)

    def run(self, mnemonic: str, descriptor: dict[str, object], prefix: str, **fields: object) -> None:
        lines, operands = [], []
        for number, (name, address) in enumerate((self.registers | self.coordinates).items(), start=1):
            lines.append(f"addr a{number}, DRAM, {address}")
            operands.append(f"{name}=a{number}")
        lines += [f"cfg {prefix}3.{name}, {value}" for name, value in descriptor.items()]
        operands += [f"desc={prefix}3"] + [f"{name}={value}" for name, value in fields.items()]
        text = "\n".join([*lines, f"{mnemonic} {', '.join(operands)}", "halt"])
        program = decode_program(assemble(text).text)
        run_program([build(item.mnemonic, PLACE, **item.fields) for item in program], self.dram)


def pack_bits(bits: np.ndarray) -> bytes:
    out = bytearray()
    for row in bits.reshape(-1, bits.shape[-1]):
        number = sum(1 << channel for channel, bit in enumerate(row) if bit)
        out += number.to_bytes(-(-len(row) // 8), "little")
    return bytes(out)


def pack_slots(grads: np.ndarray, gblk: int, dtype: str) -> bytes:
    out = bytearray()
    item = np.dtype(STORAGE[dtype]).itemsize
    for row in grads.reshape(-1, grads.shape[-1]):
        for start in range(0, len(row), gblk):
            block = row[start : start + gblk]
            live = [value for value in block if value != 0]
            slot = sum(1 << j for j, value in enumerate(block) if value != 0).to_bytes(8, "little")
            slot += np.array(live, STORAGE[dtype]).tobytes()
            out += slot.ljust(-(-(8 + gblk * item) // 8) * 8, b"\xee")
    return bytes(out)


def unpack_slots(raw: bytes, rows: int, k: int, gblk: int, dtype: str) -> np.ndarray:
    item = np.dtype(STORAGE[dtype]).itemsize
    size = -(-(8 + gblk * item) // 8) * 8
    values = np.zeros((rows, k), np.float32)
    blocks = -(-k // gblk)
    for row in range(rows):
        for block in range(blocks):
            slot = raw[(row * blocks + block) * size :][:size]
            bitmap = int.from_bytes(slot[:8], "little")
            live = [j for j in range(64) if bitmap >> j & 1]
            values[row, [block * gblk + j for j in live]] = np.frombuffer(
                slot[8 : 8 + len(live) * item], STORAGE[dtype]
            )
    return values


def slots_size(rows: int, k: int, gblk: int, dtype: str) -> int:
    return rows * -(-k // gblk) * (-(-(8 + gblk * np.dtype(STORAGE[dtype]).itemsize) // 8) * 8)


def dyadic(rng: np.random.Generator, *shape: int, density: float = 1.0) -> np.ndarray:
    values = rng.integers(-16, 17, shape) / 8
    return (values * (rng.random(shape) < density)).astype(np.float32)


CONV = {"imgs": 2, "oh": 3, "ow": 2, "kh": 2, "kw": 3, "sh": 2, "sw": 1, "c": 5, "k": 6, "fan": 3, "gblk": 4}
IH, IW = (3 - 1) * 2 + 2, (2 - 1) * 1 + 3
TAPS = [(ky, kx) for ky in range(2) for kx in range(3)]


def seen(x: np.ndarray, oh: int = 3, ow: int = 2, sh: int = 2, sw: int = 1) -> np.ndarray:
    """[img, oy, ox, tap, c]"""
    out = np.zeros((len(x), oh, ow, len(TAPS), x.shape[-1]), x.dtype)
    for i, oy, ox in np.ndindex(len(x), oh, ow):
        for tap, (ky, kx) in enumerate(TAPS):
            out[i, oy, ox, tap] = x[i, oy * sh + ky, ox * sw + kx]
    return out


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_fe_fill_rounds_every_partial_sum(dtype: str) -> None:
    bench = Bench(1)
    weights = bench.rng.normal(size=(6, 5, 6)).astype(STORAGE[dtype]).astype(np.float32)
    bench.put("lut", b"")
    bench.put("w", weights.astype(STORAGE[dtype]).tobytes())
    bench.run("fe.fill", CONV | {"dtype": dtype}, "c")
    tables = bench.get("lut", (6, 2, 8, 6), STORAGE[dtype])
    for tap, group, pattern, k in np.ndindex(6, 2, 8, 6):
        expected = np.float32(0)
        for bit in reversed(range(3)):  # the lowest bit is added last
            channel = group * 3 + bit
            if pattern >> bit & 1:
                weight = weights[tap, channel, k] if channel < 5 else np.float32(0)
                expected = np.float32(np.float32(expected + weight).astype(STORAGE[dtype]))
        assert tables[tap, group, pattern, k] == expected


@pytest.mark.parametrize("init", ["0", "0x100"])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_fe_run_is_a_convolution(dtype: str, init: str) -> None:
    bench = Bench(2)
    spikes = bench.rng.random((2, IH, IW, 5)) < 0.4
    weights, start = dyadic(bench.rng, 6, 5, 6), dyadic(bench.rng, 2, 3, 2, 6)
    padded = np.concatenate([weights, np.zeros((6, 1, 6), np.float32)], axis=1).reshape(6, 2, 3, 6)
    tables = np.stack([sum(padded[:, :, b] * (p >> b & 1) for b in range(3)) for p in range(8)], axis=2)
    bench.put("acc", start.tobytes())
    bench.put("s", pack_bits(spikes))
    bench.put("lut", tables.astype(STORAGE[dtype]).tobytes())
    bench.run("fe.run", CONV | {"dtype": dtype}, "c", init=init, shape="16x128")
    expected = np.einsum("iyxtc,tck->iyxk", seen(spikes.astype(np.float64)), weights) + (start if init != "0" else 0)
    assert (bench.get("acc", (2, 3, 2, 6)) == expected).all()


@pytest.mark.parametrize("init", ["0", "0x100"])
def test_be_fwd_is_a_convolution(init: str) -> None:
    bench = Bench(3)
    x, weights = dyadic(bench.rng, 2, IH, IW, 5, density=0.6), dyadic(bench.rng, 6, 5, 6)
    start = dyadic(bench.rng, 2, 3, 2, 6)
    bench.put("acc", start.tobytes())
    bench.put("x", x.astype("<f2").tobytes())
    bench.put("w", weights.astype("<f2").tobytes())
    bench.run("be.fwd", CONV | {"dtype": "f16"}, "c", init=init)
    expected = np.einsum("iyxtc,tck->iyxk", seen(x).astype(np.float64), weights) + (start if init != "0" else 0)
    assert (bench.get("acc", (2, 3, 2, 6)) == expected).all()


def test_be_fwd_sums_in_order_and_skips_zero_times_infinity() -> None:
    bench = Bench(4)
    x = bench.rng.normal(size=(1, 1, 1, 7)).astype(np.float32) * (np.arange(7) != 2)
    weights = bench.rng.normal(size=(1, 7, 1)).astype(np.float32)
    weights[0, 2] = np.inf
    bench.put("acc", bytes(4))
    bench.put("x", x.tobytes())
    bench.put("w", weights.tobytes())
    one = {"imgs": 1, "oh": 1, "ow": 1, "kh": 1, "kw": 1, "sh": 1, "sw": 1, "c": 7, "k": 1, "dtype": "f32"}
    bench.run("be.fwd", one, "c", init=0)
    expected = np.float32(0)
    for channel in (0, 1, 3, 4, 5, 6):
        expected = np.float32(expected + np.float32(x[0, 0, 0, channel] * weights[0, channel, 0]))
    assert bench.get("acc", (1,))[0] == expected


def transposed(g: np.ndarray, weights: np.ndarray, oh: int, ow: int, py: int, px: int, sh: int, sw: int) -> np.ndarray:
    """Scatter instead of gather: gradient (gy, gx) goes to position (gy*sh + ky - py, gx*sw + kx - px)."""
    out = np.zeros((len(g), oh, ow, weights.shape[1]))
    for i, gy, gx in np.ndindex(g.shape[:3]):
        for tap, (ky, kx) in enumerate(TAPS):
            y, x = gy * sh + ky - py, gx * sw + kx - px
            if 0 <= y < oh and 0 <= x < ow:
                out[i, y, x] += weights[tap].astype(np.float64) @ g[i, gy, gx]
    return out


@pytest.mark.parametrize("masked", ["no", "yes"])
@pytest.mark.parametrize(
    ("init", "mode", "dtype"), [("0", "dense", "f32"), ("0x100", "dual", "f16"), ("0", "in", "f16")]
)
def test_be_run_is_the_transposed_convolution(init: str, mode: str, dtype: str, masked: str) -> None:
    bench = Bench(5)
    gradient, weights = dyadic(bench.rng, 2, 4, 3, 6, density=0.5), dyadic(bench.rng, 6, 5, 6)
    start, mask = dyadic(bench.rng, 2, 7, 4, 5), bench.rng.random((2, 7, 4, 5)) < 0.5
    bench.put("acc", start.tobytes())
    bench.put("g", pack_slots(gradient, 4, dtype))
    bench.put("w", weights.astype(STORAGE[dtype]).tobytes())
    bench.put("m", pack_bits(mask))
    geometry = {"oh": 7, "ow": 4, "gh": 4, "gw": 3, "py": 1, "px": 2, "dtype": dtype}
    bench.run("be.run", CONV | geometry, "c", init=init, mode=mode, masked=masked)
    expected = transposed(gradient, weights, 7, 4, 1, 2, 2, 1) + (start if init != "0" else 0)
    if masked == "yes":
        expected = np.where(mask, expected, 0)
    got = bench.get("acc", (2, 7, 4, 5))
    assert (got == expected).all()
    assert masked == "no" or not np.signbit(got[~mask]).any()


@pytest.mark.parametrize("init", ["0", "0x100"])
@pytest.mark.parametrize("mnemonic", ["be.wgt", "wu.run"])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_weight_gradients_are_correlations(mnemonic: str, dtype: str, init: str) -> None:
    bench = Bench(6)
    gradient, start = dyadic(bench.rng, 2, 3, 2, 6, density=0.5), dyadic(bench.rng, 6, 5, 6)
    spikes = bench.rng.random((2, IH, IW, 5)) < 0.4
    x = spikes.astype(np.float32) if mnemonic == "wu.run" else dyadic(bench.rng, 2, IH, IW, 5, density=0.5)
    bench.put("acc", start.tobytes())
    if mnemonic == "wu.run":
        bench.put("s", pack_bits(spikes))
    else:
        bench.put("x", x.astype(STORAGE[dtype]).tobytes())
    bench.put("g", pack_slots(gradient, 4, dtype))
    bench.run(mnemonic, CONV | {"dtype": dtype, "fan": 5}, "c", init=init)
    expected = np.einsum("iyxtc,iyxk->tck", seen(x).astype(np.float64), gradient) + (start if init != "0" else 0)
    assert (bench.get("acc", (6, 5, 6)) == expected).all()


def test_wu_run_rounds_the_entries_and_adds_groups_in_order() -> None:
    bench = Bench(7)
    gradient = bench.rng.normal(size=(10, 1)).astype(np.float16).astype(np.float32)
    spikes = bench.rng.random((10, 1)) < 0.7
    bench.put("acc", bytes(4))
    bench.put("s", pack_bits(spikes))
    bench.put("g", pack_slots(gradient, 1, "f16"))
    one = {"imgs": 10, "oh": 1, "ow": 1, "kh": 1, "kw": 1, "sh": 1, "sw": 1, "c": 1, "k": 1, "fan": 4, "gblk": 1}
    bench.run("wu.run", one | {"dtype": "f16"}, "c", init=0)
    expected = np.float32(0)
    for group in range(0, 10, 4):
        entry = np.float32(0)
        for position in reversed(range(group, min(group + 4, 10))):
            if spikes[position, 0]:
                entry = np.float32(np.float16(entry + gradient[position, 0]))
        expected = np.float32(expected + entry)
    assert bench.get("acc", (1,))[0] == expected


NEURON = {"n": 4, "k": 11, "gblk": 8}


def neuron_inputs(bench: Bench) -> dict[str, np.ndarray]:
    return {
        "acc": bench.rng.normal(size=(4, 11)).astype(np.float32),
        "par": bench.rng.normal(size=(8, 11)).astype(np.float32),
        "us": bench.rng.normal(size=(4, 11)).astype(np.float16).astype(np.float32),
        "ss": bench.rng.random((4, 11)) < 0.5,
        "cs": bench.rng.normal(size=(4, 11)).astype(np.float16).astype(np.float32),
    }


DRIVES = ["plain", "scaled", "synapse", "delayed"]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("reset", ["hard", "soft", "soft_delayed", "hard_delayed", "none"])
@pytest.mark.parametrize(("spike", "drive"), [("gt", "plain"), ("ge", "plain"), *product(["gt", "never"], DRIVES)])
@pytest.mark.parametrize("init", ["0", "0x100"])
def test_v_lif_is_the_neuron_equation(dtype: str, reset: str, spike: str, drive: str, init: str) -> None:
    bench = Bench(8)
    arrays = neuron_inputs(bench)
    if drive == "plain":
        arrays["par"][:4, :4] = [[0], [0], [0.5], [0]]
        arrays["acc"][:, :4] = [0.5, 0.49999, 1.25, -0.25]  # theta, theta once rounded to f16, edges of the window
    for name in ("acc", "par"):
        bench.put(name, arrays[name].tobytes())
    for name in ("us", "cs"):
        bench.put(name, arrays[name].astype(STORAGE[dtype]).tobytes())
    bench.put("ss", pack_bits(arrays["ss"]))
    for name in ("so", "uo", "mo"):
        bench.put(name, b"\x55" * 300)
    settings = {"dtype": dtype, "reset": reset, "spike": spike, "save_u": "yes", "save_m": "yes", "width": 0.75}
    bench.run("v.lif", NEURON | settings | {"drive": drive}, "n", init=init)
    f32 = np.float32
    u, s, m = (np.zeros((4, 11), t) for t in (f32, bool, bool))
    synaptic = arrays["cs"].copy()
    for i, ch in np.ndindex(4, 11):
        bias, alpha, theta, v_reset, gain, offset, initial, beta = arrays["par"][:, ch]
        before = f32(0) if drive == "plain" else initial
        spiked = init != "0" and spike != "never" and arrays["ss"][i, ch]
        if init != "0":
            before = arrays["us"][i, ch]
        if spiked:
            before = {"hard": v_reset, "soft": f32(before - theta)}.get(reset, before)
        x = f32(arrays["acc"][i, ch] + bias)
        if drive in ("synapse", "delayed"):
            held = f32(0) if init == "0" else synaptic[i, ch]
            synaptic[i, ch] = f32(f32(f32(beta * held) + x).astype(STORAGE[dtype]))
            x = synaptic[i, ch] if drive == "synapse" else held
        if drive != "plain":
            x = f32(f32(gain * x) + offset)
        decayed = f32(alpha * before)
        if spiked and reset == "soft_delayed":
            decayed = f32(decayed - theta)
        summed = v_reset if spiked and reset == "hard_delayed" else f32(decayed + x)
        u[i, ch] = f32(summed.astype(STORAGE[dtype]))
        s[i, ch] = u[i, ch] >= theta if spike == "ge" else u[i, ch] > theta
        m[i, ch] = spike == "never" or abs(f32(u[i, ch] - theta)) < f32(0.75)
    assert bench.raw("us", u.size * np.dtype(STORAGE[dtype]).itemsize) == u.astype(STORAGE[dtype]).tobytes()
    assert (bench.get("uo", (4, 11), STORAGE[dtype]) == u).all()
    assert (bench.get("cs", (4, 11), STORAGE[dtype]) == synaptic).all()
    assert bench.raw("mo", 8) == pack_bits(m)
    if spike == "never":
        assert bench.raw("so", 8) == b"\x55" * 8
        assert bench.raw("ss", 8) == pack_bits(arrays["ss"])
    else:
        assert bench.raw("so", 8) == bench.raw("ss", 8) == pack_bits(s)
        if drive == "plain":
            assert s[0, :2].tolist() == [spike == "ge", spike == "ge" and dtype == "f16"]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("reset", ["hard", "soft", "soft_delayed", "none"])
@pytest.mark.parametrize(("most", "bounded", "periodic"), [(0, "no", "no"), (3, "yes", "no"), (0, "yes", "yes")])
@pytest.mark.parametrize("init", ["0", "0x100"])
def test_v_lif_counts_spikes(dtype: str, reset: str, most: int, bounded: str, periodic: str, init: str) -> None:
    bench, f32, limit = Bench(11), np.float32, np.float32(-0.4)
    arrays = neuron_inputs(bench)
    arrays["acc"] *= 4
    arrays["par"][2] = np.abs(arrays["par"][2]) + f32(0.3)
    arrays["par"][:4, :4] = [[0], [0], [0.5], [0]]
    arrays["acc"][:, :4] = [0.5, 0.49999, 1.5, -3]  # theta, theta once rounded to f16, a multiple of theta
    for name in ("acc", "par"):
        bench.put(name, arrays[name].tobytes())
    bench.put("us", arrays["us"].astype(STORAGE[dtype]).tobytes())
    for name in ("ss", "so", "uo", "mo", "cs"):
        bench.put(name, b"\x55" * 300)
    settings = {"dtype": dtype, "reset": reset, "spike": "ge", "save_m": "yes", "width": 0.3, "counted": "yes"}
    settings |= {"most": most, "bounded": bounded, "lowest": float(limit), "periodic": periodic}
    bench.run("v.lif", NEURON | settings, "n", init=init)

    def fired(u: np.float32, theta: np.float32) -> np.float32:
        ratio = f32(u / theta)
        count = f32(np.floor(ratio)) if ratio >= 1 else f32(0)
        return min(count, f32(most)) if most else count

    u, s, m = (np.zeros((4, 11), t) for t in (f32, f32, bool))
    for i, ch in np.ndindex(4, 11):
        bias, alpha, theta, v_reset = arrays["par"][:4, ch]
        before, count = (f32(0), f32(0)) if init == "0" else (arrays["us"][i, ch], fired(arrays["us"][i, ch], theta))
        if count:
            before = {"hard": v_reset, "soft": f32(before - f32(theta * count))}.get(reset, before)
        if init != "0" and bounded == "yes":
            before = max(before, limit)
        decayed = f32(alpha * before)
        if count and reset == "soft_delayed":
            decayed = f32(decayed - f32(theta * count))
        u[i, ch] = now = f32(f32(decayed + f32(arrays["acc"][i, ch] + bias)).astype(STORAGE[dtype]))
        s[i, ch] = fired(now, theta)
        apart = abs(f32(now - theta))
        if periodic == "yes" and now >= theta:
            turn = f32(f32(now / theta) - f32(0.5))
            apart = f32(theta * abs(f32(f32(2) * f32(turn - np.floor(turn)) - f32(1))))
        m[i, ch] = apart < f32(0.3)
    assert bench.raw("us", u.size * np.dtype(STORAGE[dtype]).itemsize) == u.astype(STORAGE[dtype]).tobytes()
    assert (bench.get("so", (4, 11), STORAGE[dtype]) == s).all() and s.max() >= min(most or 4, 4)
    assert bench.raw("mo", 8) == pack_bits(m)
    assert bench.raw("ss", 300) == bench.raw("uo", 300) == b"\x55" * 300
    if init == "0":
        assert s[0, :3].tolist() == [1, dtype == "f16", 3]


def test_v_lif_leaves_out_what_is_not_saved() -> None:
    bench = Bench(9)
    arrays = neuron_inputs(bench)
    for name in ("acc", "par", "us"):
        bench.put(name, arrays[name].tobytes())
    for name in ("ss", "so", "uo", "mo", "cs"):
        bench.put(name, b"\x55" * 300)
    bench.run("v.lif", NEURON, "n", init=0)
    assert bench.raw("uo", 300) == bench.raw("mo", 300) == bench.raw("cs", 300) == b"\x55" * 300


@pytest.mark.parametrize("surrogate", ["atan", "sigmoid", "fast_sigmoid"])
def test_the_mask_of_a_surrogate_without_window_is_all_ones(surrogate: str) -> None:
    bench = Bench(9)
    for name, array in neuron_inputs(bench).items():
        bench.put(name, array.tobytes())
    for name in ("so", "uo", "mo"):
        bench.put(name, b"\x55" * 300)
    bench.run("v.lif", NEURON | {"save_m": "yes", "surrogate": surrogate}, "n", init=0)
    assert bench.raw("mo", 8) == pack_bits(np.ones((4, 11), bool))


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("reset", ["hard", "soft", "soft_delayed", "none"])
@pytest.mark.parametrize(
    ("surrogate", "detach", "drive"),
    [
        ("rectangular", "no", "plain"),
        ("triangular", "no", "scaled"),
        ("rectangular", "yes", "synapse"),
        ("atan", "no", "delayed"),
        ("sigmoid", "no", "synapse"),
        ("fast_sigmoid", "no", "plain"),
        ("exponential", "no", "plain"),
        ("gaussian", "no", "scaled"),
    ],
)
@pytest.mark.parametrize("init", ["0", "0x100"])
def test_v_grad_is_the_adjoint_equation(
    dtype: str, reset: str, surrogate: str, detach: str, drive: str, init: str
) -> None:
    bench = Bench(10)
    f32 = np.float32
    gs, par = bench.rng.normal(size=(4, 11)).astype(f32), bench.rng.normal(size=(8, 11)).astype(f32)
    u, gc, gi = (bench.rng.normal(size=(4, 11)).astype(STORAGE[dtype]).astype(f32) for _ in range(3))
    s = bench.rng.random((4, 11)) < 0.5
    par[2, :2], u[:, 0], u[:, 1] = 0.5, 1.25, -0.25  # on the edges of the window
    bench.put("gs", gs.tobytes())
    bench.put("u", u.astype(STORAGE[dtype]).tobytes())
    bench.put("s", pack_bits(s))
    bench.put("par", par.tobytes())
    bench.put("gc", gc.astype(STORAGE[dtype]).tobytes())
    bench.put("gi", gi.astype(STORAGE[dtype]).tobytes())
    bench.put("go", b"")
    settings = {"dtype": dtype, "reset": reset, "surrogate": surrogate, "detach": detach, "width": 0.75, "height": 1.3}
    bench.run("v.grad", NEURON | settings | {"drive": drive}, "n", init=init)
    expected, carried = np.zeros((4, 11), f32), np.zeros((4, 11), f32)
    for i, ch in np.ndindex(4, 11):
        _, alpha, theta, v_reset, gain, _, _, beta = par[:, ch]
        later, distance = gc[i, ch] if init != "0" else f32(0), abs(f32(u[i, ch] - theta))
        slope, z = f32(0), f32(distance / f32(0.75))
        if surrogate == "atan":
            slope = f32(f32(1.3) / f32(f32(1) + f32(z * z)))
        elif surrogate == "sigmoid":
            fallen = f32(numerics.exp(-z))
            slope = f32(f32(f32(4) * f32(1.3)) * f32(fallen / f32(f32(f32(1) + fallen) * f32(f32(1) + fallen))))
        elif surrogate == "fast_sigmoid":
            slope = f32(f32(1.3) / f32(f32(f32(1) + z) * f32(f32(1) + z)))
        elif surrogate in ("exponential", "gaussian"):
            slope = f32(f32(1.3) * f32(numerics.exp(-f32(z * z) if surrogate == "gaussian" else -z)))
        elif distance < f32(0.75):
            slope = f32(1.3)
            if surrogate == "triangular":
                slope = f32(slope * f32(f32(1) - z))
        e = gs[i, ch]
        if detach == "no" and reset == "hard":
            e = f32(e - f32(f32(alpha * f32(u[i, ch] - v_reset)) * later))
        if detach == "no" and reset == "soft":
            e = f32(e - f32(f32(alpha * theta) * later))
        if detach == "no" and reset == "soft_delayed":
            e = f32(e - f32(theta * later))
        carry = f32(0) if reset == "hard" and s[i, ch] else f32(alpha * later)
        gu = f32(f32(slope * e) + carry) if slope != 0 else carry
        carried[i, ch] = expected[i, ch] = f32(gu.astype(STORAGE[dtype]))
        if drive != "plain":
            gx = f32(gain * (later if drive == "delayed" else carried[i, ch]))
            if drive != "scaled":
                gx = f32(gx + f32(beta * (gi[i, ch] if init != "0" else f32(0))))
            expected[i, ch] = f32(gx.astype(STORAGE[dtype]))
    assert (bench.get("gc", (4, 11), STORAGE[dtype]) == carried).all()
    held = expected if drive in ("synapse", "delayed") else gi
    assert (bench.get("gi", (4, 11), STORAGE[dtype]) == held).all()
    assert (unpack_slots(bench.raw("go", slots_size(4, 11, 8, dtype)), 4, 11, 8, dtype) == expected).all()


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("surrogate", ["rectangular", "triangular"])
def test_potentials_inside_the_window_are_all_that_a_gradient_needs(dtype: str, surrogate: str) -> None:
    bench, item, ublk = Bench(9), np.dtype(STORAGE[dtype]), 3
    arrays = neuron_inputs(bench)
    arrays["par"][:4, :3] = [[0], [0], [0.5], [0]]
    arrays["acc"][:, :3] = [0.0, 1.25, -0.25]  # inside with the value 0, and the edges of the window, which are outside
    for name in ("acc", "par"):
        bench.put(name, arrays[name].tobytes())
    settings = {"dtype": dtype, "reset": "hard", "surrogate": surrogate, "width": 0.75, "ublk": ublk}
    for name in ("us", "ss", "so", "cs"):
        bench.put(name, b"")
    for name in ("uo", "mo"):
        bench.put(name, b"\x55" * 600)
    bench.run("v.lif", NEURON | settings | {"save_u": "inside"}, "n", init="0")
    u = bench.get("us", (4, 11), STORAGE[dtype])
    inside = np.abs(u - arrays["par"][2]) < np.float32(0.75)
    assert bench.raw("mo", 8) == b"\x55" * 8 and inside[:, :3].tolist() == [[True, False, False]] * 4
    slot = -(-(8 + ublk * item.itemsize) // 8) * 8
    for i, block in np.ndindex(4, 4):
        channels = range(ublk * block, min(11, ublk * block + ublk))
        values = u[i, [ch for ch in channels if inside[i, ch]]].astype(item).tobytes()
        bitmap = sum(1 << n for n, ch in enumerate(channels) if inside[i, ch])
        kept = bench.raw("uo", 4 * 4 * slot)[(4 * i + block) * slot :]
        assert kept[: 8 + len(values)] == bitmap.to_bytes(8, "little") + values
    kept, s = bench.raw("uo", 4 * 4 * slot), bench.raw("ss", 8)
    gs, gc = (bench.rng.normal(size=(4, 11)).astype(np.float32) for _ in range(2))
    found = []
    for seen, potentials in (("potential", u.astype(item).tobytes()), ("inside", kept)):
        bench = Bench(10)
        for name, data in (("gs", gs.tobytes()), ("u", potentials), ("s", s), ("par", arrays["par"].tobytes())):
            bench.put(name, data)
        bench.put("gc", gc.astype(item).tobytes())
        bench.put("go", b"\x55" * 600)
        bench.put("gi", b"")
        bench.run("v.grad", NEURON | settings | {"detach": "no", "seen": seen}, "n", init="0x100")
        found.append((bench.raw("gc", 44 * item.itemsize), bench.raw("go", slots_size(4, 11, 8, dtype))))
    assert found[0] == found[1]


def test_v_grad_of_a_leaky_integrator() -> None:
    bench = Bench(11)
    gs, par, gc = (dyadic(bench.rng, 4, 11) for _ in range(3))
    gs[0, 0] = np.nan
    for name, array in (("gs", gs), ("u", gs), ("s", gs), ("par", par), ("gc", gc), ("gi", gc)):
        bench.put(name, array.tobytes())
    bench.put("go", b"")
    bench.run("v.grad", NEURON | {"spike": "never"}, "n", init="0x100")
    expected = gs + par[1] * gc
    got = unpack_slots(bench.raw("go", slots_size(4, 11, 8, "f32")), 4, 11, 8, "f32")
    np.testing.assert_array_equal(got, expected)
    assert np.isnan(got[0, 0])


POOL = {"imgs": 2, "oh": 3, "ow": 2, "kh": 2, "kw": 3, "sh": 2, "sw": 1, "k": 5, "gblk": 4}


@pytest.mark.parametrize(
    ("src", "dst", "dtype"), [("bits", "storage", "f16"), ("bits", "storage", "f32"), ("f32", "f32", "f32")]
)
def test_v_pool_avg(src: str, dst: str, dtype: str) -> None:
    bench = Bench(12)
    tile = bench.rng.random((2, IH, IW, 5)) < 0.5 if src == "bits" else dyadic(bench.rng, 2, IH, IW, 5)
    bench.put("dst", b"")
    bench.put("src", pack_bits(tile) if src == "bits" else tile.tobytes())
    bench.put("idx", b"\x55" * 60)
    bench.coordinates |= {"y": 7, "x": 7}
    bench.run("v.pool", POOL | {"kind": "avg", "src": src, "dst": dst, "dtype": dtype}, "p")
    total = seen(tile.astype(np.float32)).sum(axis=3, dtype=np.float64).astype(np.float32)
    assert (bench.get("dst", total.shape, STORAGE[dtype]) == (total / np.float32(6)).astype(STORAGE[dtype])).all()
    assert bench.raw("idx", 60) == b"\x55" * 60


@pytest.mark.parametrize("src", ["bits", "f32"])
def test_v_pool_max_keeps_the_first_winner(src: str) -> None:
    bench = Bench(13)
    tile = bench.rng.random((2, IH, IW, 5)) < 0.3 if src == "bits" else dyadic(bench.rng, 2, IH, IW, 5)
    if src == "f32":
        tile[0, 1, 1, 0] = np.nan
        tile[0, 1, 2, 0] = np.nan
        tile[0, 0, 0, 1] = np.nan
    bench.put("dst", b"")
    bench.put("src", pack_bits(tile) if src == "bits" else tile.tobytes())
    bench.put("idx", b"")
    bench.coordinates |= {"y": 0, "x": 0}
    bench.run("v.pool", POOL | {"kind": "max", "src": src, "dst": src}, "p")
    elements = np.moveaxis(seen(tile.astype(np.float32)), 3, -1)
    winner = np.argmax(elements, axis=-1)  # NumPy: the first NaN, else the first largest
    value = np.take_along_axis(elements, winner[..., None], axis=-1)[..., 0]
    assert (bench.get("idx", winner.shape, "u1") == winner).all()
    if src == "bits":
        assert bench.raw("dst", 12) == pack_bits(value != 0)
    else:
        np.testing.assert_array_equal(bench.get("dst", value.shape), value)


def test_v_pool_refuses_other_formats() -> None:
    bench = Bench()
    for name in ("dst", "src", "idx"):
        bench.put(name, b"")
    bench.coordinates |= {"y": 0, "x": 0}
    with pytest.raises(H2LearnError, match="max from bits to storage"):
        bench.run("v.pool", POOL | {"kind": "max", "src": "bits", "dst": "storage"}, "p")


@pytest.mark.parametrize("kind", ["avg", "max"])
@pytest.mark.parametrize("form", ["f32", "slots"])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_v_unpool_scatters_the_gradient(kind: str, form: str, dtype: str) -> None:
    bench = Bench(14)
    gradient = dyadic(bench.rng, 2, 4, 3, 5, density=0.6) * 6
    winner = bench.rng.integers(0, 6, (2, 4, 3, 5)).astype(np.uint8)
    bench.put("dst", b"")
    bench.put("src", pack_slots(gradient, 4, dtype) if form == "slots" else gradient.tobytes())
    bench.put("idx", winner.tobytes())
    geometry = {
        "oh": 7,
        "ow": 4,
        "gh": 4,
        "gw": 3,
        "py": 1,
        "px": 0,
        "kind": kind,
        "src": form,
        "dst": form,
        "dtype": dtype,
    }
    bench.run("v.unpool", POOL | geometry, "p")
    expected = np.zeros((2, 7, 4, 5))
    for i, gy, gx, ch in np.ndindex(2, 4, 3, 5):
        for tap, (ky, kx) in enumerate(TAPS):
            y, x = gy * 2 + ky - 1, gx + kx
            if 0 <= y < 7 and 0 <= x < 4 and (kind == "avg" or winner[i, gy, gx, ch] == tap):
                expected[i, y, x, ch] += gradient[i, gy, gx, ch] / (6 if kind == "avg" else 1)
    if form == "slots":
        raw = bench.raw("dst", slots_size(2 * 7 * 4, 5, 4, dtype))
        assert (unpack_slots(raw, 56, 5, 4, dtype).reshape(expected.shape) == expected).all()
    else:
        assert (bench.get("dst", expected.shape) == expected).all()


def test_v_rng_draws_by_coordinates() -> None:
    bench = Bench(15)
    probability = bench.rng.random((3, 2, 10)).astype(np.float32)
    seed, first = 0x123456789ABCDEF0, 0xFFFFFFFE
    bench.put("dst", b"")
    bench.put("src", probability.tobytes())
    bench.put("scal", bytes(16) + seed.to_bytes(8, "little") + first.to_bytes(8, "little"))
    bench.coordinates = {"pos": 1, "neu": 20, "tick": 7}
    bench.run("v.rng", {"n": 3, "steps": 2, "k": 10, "stream": 5}, "v")
    expected = np.zeros((3, 2, 10), bool)
    for i, j, ch in np.ndindex(3, 2, 10):
        sample = (first + 1 + i) % 2**32
        expected[i, j, ch] = numerics.uniform(seed, 5, sample, 20 + 10 * j + ch, 7) < probability[i, j, ch]
    assert bench.raw("dst", 12) == pack_bits(expected)
    assert 0 < expected.sum() < 60


def test_v_reduce_over_time() -> None:
    bench = Bench(16)
    bits, values = bench.rng.random((7, 2, 9)) < 0.5, dyadic(bench.rng, 7, 2, 9)
    for kind, source, expected in (
        ("rate", pack_bits(bits), (bits.sum(0).astype(np.float32) / np.float32(7))),
        ("mean", values.astype("<f2").tobytes(), values.sum(0) / np.float32(7)),
        ("last", values.astype("<f2").tobytes(), values[-1]),
    ):
        bench.registers = {}
        bench.put("dst", b"")
        bench.put("src", source)
        bench.run("v.reduce", {"n": 2, "k": 9, "steps": 7, "kind": kind, "dtype": "f16"}, "v", init=0)
        assert (bench.get("dst", (2, 9)) == expected).all(), kind


def test_v_reduce_of_gradients() -> None:
    bench = Bench(17)
    grads = bench.rng.normal(size=(5, 2, 9)).astype(np.float32) * (bench.rng.random((5, 2, 9)) < 0.7)
    bench.put("dst", b"")
    bench.put("src", pack_slots(grads, 4, "f32"))
    bench.run("v.reduce", {"n": 2, "k": 9, "steps": 5, "kind": "tsum", "dtype": "f32", "gblk": 4}, "v", init=0)
    expected = np.zeros((2, 9), np.float32)
    for step in (4, 3, 2, 1, 0):
        expected = (expected + grads[step]).astype(np.float32)
    assert (unpack_slots(bench.raw("dst", slots_size(2, 9, 4, "f32")), 2, 9, 4, "f32") == expected).all()
    rounded = dyadic(bench.rng, 5, 2, 9) + np.float32(1e-4)
    bench.put("src", pack_slots(rounded, 4, "f16"))
    bench.run("v.reduce", {"n": 2, "k": 9, "steps": 5, "kind": "tsum", "dtype": "f16", "gblk": 4}, "v", init=0)
    expected = rounded.astype("<f2").astype(np.float32).sum(axis=0).astype("<f2").astype(np.float32)
    assert (unpack_slots(bench.raw("dst", slots_size(2, 9, 4, "f16")), 2, 9, 4, "f16") == expected).all()
    start = dyadic(bench.rng, 9)
    bench.put("src", pack_slots(grads, 4, "f32"))
    for init, base in (("0", 0 * start), ("0x100", start)):
        bench.put("dst", start.tobytes())
        bench.run("v.reduce", {"n": 10, "k": 9, "kind": "bias", "dtype": "f32", "gblk": 4}, "v", init=init)
        for row in grads.reshape(10, 9):
            base = (base + row).astype(np.float32)
        assert (bench.get("dst", (9,)) == base).all()


@pytest.mark.parametrize("kind", ["cross_entropy", "mse"])
@pytest.mark.parametrize("init", ["0", "0x100"])
def test_v_loss(kind: str, init: str) -> None:
    bench = Bench(18)
    logits, labels = bench.rng.normal(size=(4, 5)).astype(np.float32), np.array([4, 0, 2, 99], "<i4")
    bench.put("loss", np.float32(0.5).tobytes())
    bench.put("grad", b"")
    bench.put("logits", logits.tobytes())
    bench.put("label", labels.tobytes())
    bench.put("scal", bytes(4) + (10).to_bytes(4, "little") + bytes(24))
    bench.coordinates = {"pos": 7}
    bench.run(
        "v.loss", {"n": 4, "k": 5, "kind": kind, "p0": 4.0, "hit": 0.75, "miss": 0.25, "share": 3.0}, "v", init=init
    )
    wide = logits.astype(np.float64)[:3]
    target = np.eye(5)[labels[:3]]
    if kind == "cross_entropy":
        soft = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
        value, grad = -np.log((soft * target).sum(axis=1)).sum() / 10, (soft - target) / 10 * 4
    else:
        goal = np.where(target, 0.75, 0.25)
        value, grad = 3 * ((wide - goal) ** 2).mean(axis=1).sum() / 10, (wide - goal) * 2 / 50 * 4
    got = bench.get("grad", (4, 5))
    np.testing.assert_allclose(got[:3], grad, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(bench.get("loss", (1,))[0], value + (0.5 if init != "0" else 0), rtol=1e-6)
    assert (got[3] == 0).all() and not np.signbit(got[3]).any()


def test_v_loss_refuses_labels_that_are_no_class() -> None:
    bench = Bench()
    for name, raw in (("loss", bytes(4)), ("grad", b""), ("logits", bytes(20)), ("label", b"\5\0\0\0")):
        bench.put(name, raw)
    bench.put("scal", bytes(4) + (1).to_bytes(4, "little") + bytes(24))
    bench.coordinates = {"pos": 0}
    with pytest.raises(H2LearnError, match="label 5 of sample 0 is not a class of 5") as caught:
        bench.run("v.loss", {"n": 1, "k": 5, "kind": "mse"}, "v", init=0)
    assert "test.snn:1:1" in str(caught.value.location)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_v_opt(momentum: float, dtype: str) -> None:
    bench = Bench(19)
    f32 = np.float32
    p, g, m = (bench.rng.normal(size=6).astype(f32) for _ in range(3))
    for name, array in (("p", p), ("g", g), ("mom", m)):
        bench.put(name, array.tobytes())
    bench.put("w", b"\x55" * 12)
    bench.put("sq", b"\x55" * 24)
    bench.put("scal", f32(0.1).tobytes() + bytes(28))
    bench.run("v.opt", {"n": 6, "kind": "sgd", "dtype": dtype, "momentum": momentum, "scale": 0.25}, "o")
    new_p, new_m = p.copy(), m.copy()
    for i in range(6):
        step = f32(g[i] * f32(0.25))
        if momentum:
            step = new_m[i] = f32(f32(f32(momentum) * m[i]) + step)
        new_p[i] = f32(p[i] - f32(f32(0.1) * step))
    assert (bench.get("p", (6,)) == new_p).all()
    assert (bench.get("mom", (6,)) == new_m).all()
    assert bench.raw("w", 12) == (new_p.astype("<f2").tobytes() if dtype == "f16" else b"\x55" * 12)


@pytest.mark.parametrize(("y", "x"), [(0, 0), (-1, -2), (2, 3), (-9, 0)])
@pytest.mark.parametrize("mnemonic", ["ld", "st"])
def test_transfers_clip_rows_and_columns(mnemonic: str, y: int, x: int) -> None:
    bench = Bench(20)
    source = bench.rng.bytes(0x800)
    bench.put("dst", b"\x55" * 0x800)
    bench.put("src", source)
    bench.coordinates = {"y": y, "x": x}
    settings = {"run": 3, "n0": 2, "n1": 2, "n2": 3, "n3": 4, "ss0": 200, "ss1": 90, "ss2": 20, "ss3": 4}
    settings |= {"ds0": 300, "ds1": 100, "ds2": 16, "ds3": 3, "ylim": 4, "xlim": 5}
    bench.run(mnemonic, settings, "x")
    expected = bytearray(b"\x55" * 0x800)
    for i0, i1, i2, i3 in np.ndindex(2, 2, 3, 4):
        at, start = i0 * 300 + i1 * 100 + i2 * 16 + i3 * 3, i0 * 200 + i1 * 90 + i2 * 20 + i3 * 4
        if 0 <= y + i2 < 4 and 0 <= x + i3 < 5:
            expected[at : at + 3] = source[start : start + 3]
        elif mnemonic == "ld":
            expected[at : at + 3] = bytes(3)
    assert bench.raw("dst", 0x800) == bytes(expected)


def test_accesses_outside_a_memory_are_refused() -> None:
    bench = Bench()
    bench.put("dst", b"")
    bench.registers["src"] = (1 << 20) - 1
    bench.coordinates = {"y": 0, "x": 0}
    one = {"run": 2, "n0": 1, "n1": 1, "n2": 1, "n3": 1, "ylim": 1, "xlim": 1}
    with pytest.raises(H2LearnError, match=r"ld: DRAM\[0xfffff..0x100001\] is outside"):
        bench.run("ld", one, "x")
    bench.run("ld", one | {"ylim": 0}, "x")
