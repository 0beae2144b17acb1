"""The interpreter and the simulator's plain reference, written apart, give the same bytes on random instructions."""

from __future__ import annotations

import numpy as np
import pytest

from h2learn.backends.h2learn import isa
from h2learn.dialects.common import file_location
from h2learn.dialects.h2 import build, configure
from h2learn.dialects.h2.interpreter import run_program
from h2learn.dialects.h2.layouts import Memory
from h2learn.runtime import reference
from h2learn.runtime.operation import Memories, Operand, Operation

PLACE = file_location("random", 1, 1)
SIZE = 1 << 18
DISTANCE = 0x6000
COORDINATES = ("y", "x", "pos", "neu", "tick")


def geometry(kind: str, rng: np.random.Generator) -> dict[str, int | float | str]:
    """Small odd sizes that are legal together."""

    def pick(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    def word(*names: str) -> str:
        return str(rng.choice(names))

    common: dict[str, int | float | str] = {"dtype": word("f32", "f16"), "gblk": pick(1, 9), "k": pick(1, 11)}
    if kind == "neuron":
        words = {"reset": word("hard", "soft", "soft_delayed", "none"), "spike": word("gt", "ge", "never")}
        words |= {"surrogate": word(*isa.SURROGATES)}
        words |= {"detach": word("no", "yes"), "drive": word("plain", "scaled", "synapse", "delayed")}
        words |= {"save_u": word("no", "yes"), "save_m": word("no", "yes")}
        return common | words | {"n": pick(1, 6), "ublk": pick(1, 9), "width": 0.8, "height": 1.1}
    if kind == "vec":
        return (
            common
            | {"n": pick(1, 6), "steps": pick(1, 5), "stream": pick(0, 9), "p0": pick(0, 1) * 0.9}
            | {
                "hit": 0.9,
                "miss": 0.1,
                "share": 0.7,
            }
        )
    if kind == "norm":
        sizes = {"steps": pick(1, 3), "n": pick(1, 3), "positions": pick(1, 4), "count": pick(1, 20)}
        return common | sizes | {"repeats": pick(1, 3), "eps": 0.01, "momentum": pick(0, 1) * 0.1}
    if kind == "opt":
        settings = {"n": pick(1, 6), "dtype": word("f32", "f16"), "scale": 0.3, "decay": pick(0, 1) * 0.2, "eps": 1e-3}
        return settings | {"momentum": pick(0, 1) * 0.9, "rate1": 0.1, "rate2": 0.001}
    tile = {"imgs": pick(1, 3), "oh": pick(1, 4), "ow": pick(1, 4), "kh": pick(1, 3), "kw": pick(1, 3)}
    tile |= {"sh": pick(1, 3), "sw": pick(1, 3), "gh": pick(1, 4), "gw": pick(1, 4), "py": pick(0, 3), "px": pick(0, 3)}
    tile |= {"ylim": pick(0, 5), "xlim": pick(0, 5)} if kind == "pool" else {}
    return common | tile | ({"c": pick(1, 9), "fan": pick(1, 5)} if kind == "conv" else {})


def contents(rng: np.random.Generator, dtype: str) -> bytes:
    """Numbers of the storage type; read as bits, bitmaps or winners they are as good as any."""
    values = rng.normal(size=DISTANCE // 4).astype(np.float32) * (rng.random(DISTANCE // 4) < 0.8)
    if dtype == "f16":
        return values.astype("<f2").tobytes() * 2
    return values.astype("<f4").tobytes()


CASES: list[tuple[str, dict[str, int | float | str]]] = [(m, {}) for m in ("fe.fill", "fe.run", "be.fwd", "be.run")]
CASES += [
    ("be.wgt", {}),
    ("wu.run", {}),
    ("v.lif", {}),
    ("v.lif", {"reset": "hard_delayed"}),
    ("v.grad", {"seen": "potential"}),
    ("v.rng", {}),
]
CASES += [("v.opt", {"kind": kind}) for kind in ("sgd", "nesterov", "adam", "adamw")]
CASES += [("v.reduce", {"kind": kind}) for kind in ("rate", "count", "max", "mean", "sum", "last", "tsum", "bias")]
CASES += [("v.spread", {})]
CASES += [("v.grad", {"seen": "window", "surrogate": "rectangular", "spike": "gt", "detach": "yes"})]
COUNTED = {"counted": "yes", "spike": "ge"}
CASES += [
    (name, COUNTED | {"most": most, "bounded": bounded, "lowest": -0.3, "periodic": periodic})
    for name in ("v.lif", "v.grad")
    for most, bounded, periodic in ((0, "no", "yes"), (0, "yes", "no"), (2, "yes", "yes"))
]
CASES += [(name, {"bounded": "yes", "lowest": 0.2}) for name in ("v.lif", "v.grad")]
CASES += [("v.grad", {"seen": "window", "surrogate": "rectangular", "spike": "ge", "reset": "soft"})]
CASES += [("v.grad", {"seen": "inside", "surrogate": kind}) for kind in ("rectangular", "triangular")]
CASES += [("v.lif", {"save_u": "inside"}), ("v.lif", {"save_u": "inside", "surrogate": "triangular", "spike": "gt"})]
CASES += [("fe.run", {"signed": signed, "planes": 3, "frac": 1}) for signed in ("no", "yes")]
CASES += [("v.pack", {"signed": signed, "planes": 4, "frac": 2}) for signed in ("no", "yes")]
CASES += [("v.stat", {"kind": kind}) for kind in ("sum", "square", "product")]
CASES += [("v.fold", {"kind": kind}) for kind in ("mean", "deviation")]
CASES += [("v.norm", {"kind": kind}) for kind in ("forward", "backward")]
CASES += [("v.loss", {"kind": kind}) for kind in ("cross_entropy", "mse")]
CASES += [
    ("v.pool", {"kind": "avg", "src": "bits", "dst": "storage"}),
    ("v.pool", {"kind": "avg", "src": "f32", "dst": "f32"}),
]
CASES += [("v.pool", {"kind": "sum", "src": a, "dst": b}) for a, b in (("bits", "storage"), ("f32", "f32"))]
CASES += [("v.pool", {"kind": "max", "src": form, "dst": form}) for form in ("bits", "f32")]
CASES += [("v.unpool", {"kind": k, "src": f, "dst": f}) for f in ("slots", "f32") for k in ("avg", "max", "sum")]
CASES += [("v.map", {"kind": "copy", "a": a, "dst": d}) for a in ("f32", "bits", "storage") for d in ("f32", "storage")]
CASES += [("v.map", {"kind": kind, "a": "f32", "b": "f32", "dst": "f32"}) for kind in isa.LEARNED_MAPS]
CASES += [("v.tune", {"reset": reset, "drive": "plain"}) for reset in ("hard", "soft", "soft_delayed", "none")]
CASES += [("v.drop", {"a": a, "dst": d}) for a, d in (("f32", "f32"), ("bits", "storage"), ("storage", "storage"))]
CASES += [("v.drop", {"a": a, "dst": d}) for a, d in (("slots", "slots"), ("f32", "slots"))]
CASES += [
    ("v.map", {"kind": kind, "a": a, "b": "bits", "dst": d})
    for kind in isa.GATE_MAPS
    for a, d in (("bits", "bits"), ("f32", "f32"), ("storage", "storage"), ("slots", "slots"), ("f32", "bits"))
]
CASES += [("v.map", {"kind": "copy", "a": a, "dst": d}) for a, d in (("f32", "slots"), ("slots", "f32"))]
CASES += [("v.map", {"kind": "add", "a": "f32", "b": b, "dst": "f32"}) for b in ("bits", "storage", "slots", "row")]


@pytest.mark.parametrize(
    ("mnemonic", "settings"),
    CASES,
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
@pytest.mark.parametrize("seed", range(12))
def test_same_bytes(mnemonic: str, settings: dict[str, int | float | str], seed: int) -> None:
    rng = np.random.default_rng([seed, isa.BY_MNEMONIC[mnemonic].opcode])
    row = isa.BY_MNEMONIC[mnemonic]
    kind = next(field.of for field in row.fields if field.kind is isa.Kind.DESC)
    descriptor = geometry(kind, rng) | settings
    image = np.zeros(SIZE, np.uint8)
    operands = [field.name for field in row.fields if field.kind is isa.Kind.AREG]
    addresses = {name: 0x1000 + DISTANCE * number for number, name in enumerate(operands)}
    for name, address in addresses.items():
        reals = ("acc", "gs", "par", "logits", "p", "g", "mom", "sq", "loss")
        reals += ("x", "dst", "src", "run") if kind == "norm" else ()
        exact = "f32" if name in reals or settings.get(name) in ("f32", "row") else str(descriptor["dtype"])
        image[address : address + DISTANCE] = np.frombuffer(contents(rng, exact), np.uint8)
        if name in COORDINATES:
            addresses[name] = int(rng.integers(0, 4))
    gradients = {"g", "src"} if settings.get("kind") in ("tsum", "bias") or settings.get("src") == "slots" else {"g"}
    gradients |= {"later"} | ({"u"} if settings.get("seen") == "inside" else set())
    gradients |= {name for name in ("a", "b") if settings.get(name) == "slots"}
    for name in gradients & set(addresses) if kind != "opt" else ():
        slots(image, addresses[name], block_of(descriptor, name), rng)
    if mnemonic == "v.pack":
        lowest = -8 if settings["signed"] == "yes" else 0
        numbers = rng.integers(lowest, lowest + 16, 128) / 4
        stored = numbers.astype("<f4" if descriptor["dtype"] == "f32" else "<f2").view(np.uint8)
        image[addresses["src"] :][: stored.size] = stored
    if "label" in addresses:
        labels = rng.integers(0, int(descriptor["k"]), 8).astype("<i4")
        image[addresses["label"] :][:32] = labels.view(np.uint8)
    if "scal" in addresses:
        words = np.zeros(8, "<i4")
        words[:3] = [np.float32(0.1).view(np.int32), 5, 3]
        words[4:] = rng.integers(0, 2**31, 4)
        image[addresses["scal"] :][:32] = words.view(np.uint8)

    init = bool(rng.integers(2))
    plain = {f.name: int(rng.integers(0, f.maximum + 1)) for f in row.fields if f.kind is isa.Kind.ENUM}
    fields: dict[str, int | str] = dict(plain)
    ops = []
    for number, (name, address) in enumerate(addresses.items(), start=1):
        ops.append(build("addr", PLACE, reg=number, mem="DRAM", base=address))
        fields[name] = number
    ops += [configure(kind, 7, name, value, PLACE) for name, value in descriptor.items()]
    fields |= {"desc": 7} | ({"init": 0 if init else 0x100} if any(f.name == "init" for f in row.fields) else {})
    ops += [build(mnemonic, PLACE, **fields), build("halt", PLACE)]
    dram = Memory("DRAM", SIZE)
    dram.view(0, SIZE)[:] = image
    run_program(ops, dram)

    memories = Memories({"DRAM": SIZE})
    memories.view(Operand("DRAM", 0), SIZE)[:] = image
    numbers: dict[str, int | float] = {}
    for field in isa.DESCRIPTOR_BY_NAME[kind].fields:
        value = descriptor.get(field.name, 0)
        if isinstance(value, str):
            numbers[field.name] = field.values.index(value)
        else:
            numbers[field.name] = float(np.float32(value)) if field.kind is isa.Kind.F32 else value
    places = {name: Operand("DRAM", address) for name, address in addresses.items()}
    reference.execute(Operation(0, mnemonic, places, numbers, init and "init" in fields, plain), memories)

    got, wanted = dram.view(0, SIZE), memories.view(Operand("DRAM", 0), SIZE)
    written = set(row.writes)
    if (
        mnemonic == "v.grad"
        or descriptor.get("save_u") == "inside"
        or settings.get("kind") in ("tsum", "backward")
        or "slots" in (settings.get("src"), settings.get("dst"))
    ):
        name = {"v.grad": "go", "v.lif": "uo"}.get(mnemonic, "dst")
        written -= {name}
        form = block_of(descriptor, name)
        rows = slot_rows(mnemonic, form)
        assert live_bytes(got, addresses[name], rows, form) == live_bytes(wanted, addresses[name], rows, form)
    for name in written:
        start = addresses[name]
        different = np.flatnonzero(got[start : start + DISTANCE] != wanted[start : start + DISTANCE])
        assert not different.size, f"{name} differs from byte {different[0]} on; {descriptor} init={init}"


def block_of(descriptor: dict[str, int | float | str], name: str) -> dict[str, int | float | str]:
    """The descriptor with the channels of a slot of the operand in ``gblk``."""
    return descriptor | {"gblk": descriptor["ublk"]} if name in ("u", "uo") else descriptor


def slot_bytes(descriptor: dict[str, int | float | str]) -> int:
    item = 4 if descriptor["dtype"] == "f32" else 2
    return -(-(8 + int(descriptor["gblk"]) * item) // 8) * 8


def slot_rows(mnemonic: str, descriptor: dict[str, int | float | str]) -> int:
    blocks = -(-int(descriptor["k"]) // int(descriptor["gblk"]))
    if mnemonic == "v.unpool":
        return blocks * int(descriptor["imgs"]) * int(descriptor["oh"]) * int(descriptor["ow"])
    if mnemonic == "v.drop":
        blocks *= int(descriptor["steps"])
    if mnemonic == "v.norm":
        blocks *= int(descriptor["steps"]) * int(descriptor["positions"])
    return blocks * int(descriptor["n"])


def slots(image: np.ndarray, address: int, descriptor: dict[str, int | float | str], rng: np.random.Generator) -> None:
    """Fill the operand with slots whose bitmaps name existing channels only."""
    size, gblk, k = slot_bytes(descriptor), int(descriptor["gblk"]), int(descriptor["k"])
    blocks = -(-k // gblk)
    for number in range(DISTANCE // size):
        channels = min(gblk, k - number % blocks * gblk)
        bitmap = int(rng.integers(0, 1 << channels))
        at = address + number * size
        image[at : at + 8] = np.frombuffer(bitmap.to_bytes(8, "little"), np.uint8)
        values = rng.normal(size=gblk).astype("<f4" if descriptor["dtype"] == "f32" else "<f2")
        image[at + 8 : at + 8 + values.nbytes] = values.view(np.uint8)


def live_bytes(memory: np.ndarray, address: int, rows: int, descriptor: dict[str, int | float | str]) -> list[bytes]:
    """Bitmap and live values of every slot; the rest of a slot is undefined."""
    size, item = slot_bytes(descriptor), 4 if descriptor["dtype"] == "f32" else 2
    found = []
    for row in range(rows):
        slot = memory[address + row * size :][:size].tobytes()
        found.append(slot[: 8 + int.from_bytes(slot[:8], "little").bit_count() * item])
    return found
