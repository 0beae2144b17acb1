"""Every computing instruction, alone: the plain reference and the fast kernels leave the same bytes and counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from h2learn.backends.h2learn import isa
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.runtime import fast, prepared, reference, team
from h2learn.runtime.operation import Memories, Operand, Operation, open_operands, slot_bytes, spans

BASE = 1 << 14
DRAM_BASE = 0x1000
KERNELS = sorted(reference.SEMANTICS)
REALS = ("acc", "gs", "loss", "grad", "logits", "p", "g", "mom", "par", "x", "w", "lut", "us", "uo", "u", "gc")


class Builder:
    """Draws one random instruction and places its operands in memories of random bytes."""

    def __init__(self, mnemonic: str, seed: int) -> None:
        self.row = isa.BY_MNEMONIC[mnemonic]
        self.rng = np.random.default_rng([seed, self.row.opcode])
        kind = next(f.of for f in self.row.fields if f.kind is isa.Kind.DESC)
        self.fields = {f.name: f for f in isa.DESCRIPTOR_BY_NAME[kind].fields}
        self.desc: dict[str, int | float] = dict.fromkeys(self.fields, 0)
        self.special = seed % 4 == 3

    def pick(self, *choices: int) -> int:
        return int(self.rng.choice(choices))

    def enum(self, field: str, *names: str) -> None:
        values = self.fields[field].values
        self.desc[field] = values.index(str(self.rng.choice(names or values)))

    def draw(self) -> None:
        getattr(self, f"draw_{self.row.mnemonic.replace('.', '_')}")()

    def draw_conv(self) -> None:
        self.desc |= {
            "imgs": self.pick(1, 2, 3),
            "oh": self.pick(1, 2, 3, 5),
            "ow": self.pick(1, 2, 4),
            "kh": self.pick(1, 2, 3, 4),
            "kw": self.pick(1, 2, 3, 5),
            "sh": self.pick(1, 2, 3),
            "sw": self.pick(1, 2),
            "c": self.pick(1, 3, 8, 11, 16),
            "k": self.pick(1, 7, 10, 16, 19, 37, 70),
            "fan": self.pick(1, 2, 3, 4, 5, 8),
            "gblk": self.pick(4, 13, 16, 64),
            "gh": self.pick(1, 2, 4),
            "gw": self.pick(1, 3),
            "py": self.pick(0, 1, 2),
            "px": self.pick(0, 1, 3),
        }
        self.enum("dtype")

    def draw_fe_run(self) -> None:
        self.draw_conv()
        self.desc |= {"planes": self.pick(0, 0, 1, 3, 6), "frac": self.pick(-1, 0, 2)}
        self.enum("signed")

    draw_fe_fill = draw_be_fwd = draw_be_run = draw_be_wgt = draw_wu_run = draw_conv

    def draw_neuron(self) -> None:
        self.desc |= {"n": self.pick(1, 5, 33, 300), "k": self.pick(1, 3, 8, 10, 16, 67), "gblk": self.pick(4, 16, 64)}
        self.desc |= {"ublk": self.pick(3, 8, 16, 48, 64)}
        self.desc |= {"width": self.pick(1, 2, 9) / 4, "height": self.pick(0, 1, 2) / 2}
        for field in ("dtype", "reset", "spike", "surrogate", "detach", "save_u", "save_m", "drive"):
            self.enum(field)
        if self.pick(0, 1):
            self.desc |= {"k": self.pick(16, 48, 80), "gblk": self.pick(16, 32, 64)}
            self.enum("dtype", "f32"), self.enum("drive", "plain")
            self.enum("reset", "none", "hard", "soft"), self.enum("surrogate", "rectangular", "rectangular", "atan")
        if self.row.mnemonic != "v.lif" and self.fields["reset"].values[self.desc["reset"]] == "hard_delayed":
            self.enum("reset", "hard")
        seen = self.pick(0, 1, 2) if self.row.mnemonic == "v.grad" else 0
        if seen == 1:
            self.enum("surrogate", "rectangular"), self.enum("detach", "yes"), self.enum("seen", "window")
        elif seen == 2:
            self.enum("surrogate", "rectangular", "triangular"), self.enum("seen", "inside")
        elif self.pick(0, 0, 1):
            self.enum("bounded", "yes")
            self.desc |= {"lowest": self.pick(-2, 0, 3) / 4}

    def draw_counting(self) -> None:
        self.draw_neuron()
        if self.pick(0, 1):
            self.enum("counted", "yes"), self.enum("spike", "ge"), self.enum("periodic")
            kinds = ("soft", "none", "soft_delayed") if self.desc.get("seen") else ("hard", "soft", "soft_delayed")
            self.enum("reset", *kinds)
            self.desc |= {"most": self.pick(0, 2)}

    draw_v_lif = draw_v_grad = draw_counting

    def draw_v_tune(self) -> None:
        self.draw_neuron()
        self.enum("drive", "plain")

    def draw_v_pool(self) -> None:
        self.draw_pool()
        kind, src, dst = [
            ("avg", "bits", "storage"),
            ("avg", "f32", "f32"),
            ("max", "bits", "bits"),
            ("max", "f32", "f32"),
            ("sum", "bits", "storage"),
            ("sum", "f32", "f32"),
        ][self.pick(*range(6))]
        self.desc |= {"ylim": self.pick(0, 1, 3, 5), "xlim": self.pick(0, 1, 4)}
        self.enum("kind", kind), self.enum("src", src), self.enum("dst", dst)

    def draw_v_unpool(self) -> None:
        self.draw_pool()
        form = str(self.rng.choice(["f32", "slots"]))
        self.enum("src", form), self.enum("dst", form)

    def draw_pool(self) -> None:
        self.desc |= {
            "imgs": self.pick(1, 2),
            "oh": self.pick(1, 2, 5),
            "ow": self.pick(1, 3),
            "kh": self.pick(1, 2, 3),
            "kw": self.pick(1, 2, 4),
            "sh": self.pick(1, 2, 3),
            "sw": self.pick(1, 2),
            "k": self.pick(1, 5, 8, 16, 21),
            "gblk": self.pick(4, 16, 64),
            "gh": self.pick(1, 3),
            "gw": self.pick(1, 2),
            "py": self.pick(0, 1),
            "px": self.pick(0, 2),
        }
        self.enum("dtype"), self.enum("kind")

    def draw_vec(self, *kinds: str) -> None:
        self.desc |= {"n": self.pick(1, 4, 9), "k": self.pick(1, 3, 10, 16, 20), "steps": self.pick(1, 3, 6)}
        self.desc |= {"gblk": self.pick(4, 16, 64), "stream": self.pick(0, 7), "p0": self.pick(0, 1, 3) / 4}
        self.enum("dtype"), self.enum("kind", *kinds)

    def draw_v_rng(self) -> None:
        self.draw_vec()

    def draw_v_drop(self) -> None:
        self.draw_vec()
        self.desc |= {"p0": self.pick(0, 2, 4) / 4, "share": self.pick(1, 4) / 2}
        self.enum("a"), self.enum("dst", "f32", "storage", "slots")

    def draw_v_reduce(self) -> None:
        self.draw_vec("rate", "count", "max", "mean", "sum", "last", "tsum", "bias")

    def draw_v_map(self) -> None:
        self.draw_vec("copy", "add", *isa.LEARNED_MAPS, *isa.GATE_MAPS)
        for operand in ("a", "b", "dst"):
            self.enum(operand)

    def draw_v_pack(self) -> None:
        self.desc |= {"n": self.pick(1, 4, 9), "k": self.pick(1, 3, 10, 16, 20), "planes": self.pick(1, 3, 5, 9)}
        self.desc["frac"] = self.pick(-2, 0, 1, 8)
        self.enum("dtype"), self.enum("signed")

    def draw_v_spread(self) -> None:
        self.draw_vec()

    def draw_norm(self, *kinds: str) -> None:
        self.desc |= {"steps": self.pick(1, 3), "n": self.pick(1, 4), "positions": self.pick(1, 5)}
        self.desc |= {"k": self.pick(1, 3, 16, 20), "gblk": self.pick(4, 16, 64), "count": self.pick(1, 30)}
        self.desc |= {"repeats": self.pick(1, 4), "eps": self.pick(1, 2) / 16, "momentum": self.pick(0, 1, 4) / 4}
        self.enum("dtype"), self.enum("kind", *kinds)

    def draw_v_stat(self) -> None:
        self.draw_norm("sum", "square", "product")

    def draw_v_fold(self) -> None:
        self.draw_norm("mean", "deviation")

    def draw_v_norm(self) -> None:
        self.draw_norm("forward", "backward")

    def draw_v_loss(self) -> None:
        self.draw_vec("cross_entropy", "mse")
        self.desc |= {"hit": self.pick(1, 2) / 2, "miss": self.pick(0, 1) / 4, "share": self.pick(1, 3) / 2}

    def draw_v_opt(self) -> None:
        self.desc |= {"n": self.pick(1, 100, 1000), "eps": 2.0**-20}
        self.desc |= {name: self.pick(0, 1, 3) / 4 for name in ("scale", "decay", "momentum")}
        self.desc |= {name: self.pick(1, 3) / 16 for name in ("rate1", "rate2")}
        self.enum("dtype"), self.enum("kind")

    def draw_ld(self) -> None:
        n = [self.pick(1, 2), self.pick(1, 3), self.pick(1, 2, 4), self.pick(1, 2, 5)]
        slots = bool(self.pick(0, 1))
        item, slot = 2, slot_bytes(16, 2)
        run = slot * self.pick(1, 2) if slots else self.pick(1, 3, 8, 24)
        strides = [run * int(np.prod(n[d + 1 :])) for d in range(4)]
        gap = self.pick(0, 5)
        self.desc |= {"mode": int(slots), "run": run, "slot": slot if slots else 0, "item": item if slots else 0}
        self.desc |= {f"n{d}": n[d] for d in range(4)} | {f"ss{d}": strides[d] + gap * (4 - d) ** 2 for d in range(4)}
        self.desc |= {f"ds{d}": -strides[d] if gap and d == 0 else strides[d] for d in range(4)}
        self.desc |= {"ylim": self.pick(1, 3, 9), "xlim": self.pick(1, 2, 9)}

    draw_st = draw_ld

    def operation(self) -> tuple[Operation, Memories]:
        self.draw()
        names = [f.name for f in self.row.fields if f.kind is isa.Kind.AREG]
        memories = list(isa.MEMORIES)
        order = self.rng.permutation(len(memories))
        operands, scattered = {}, bool(self.pick(0, 0, 1))
        for index, name in enumerate(names):
            memory = memories[order[index % len(memories)]]
            address = BASE + (self.pick(1, 2, 4, 9) if scattered else 0) + (DRAM_BASE if memory == "DRAM" else 0)
            if name in ("y", "pos", "neu", "tick") or (name == "x" and self.row.mnemonic in ("ld", "st", "v.pool")):
                address = self.pick(-2, -1, 0, 1) if name in ("y", "x") else self.pick(0, 2, 1000)
            operands[name] = Operand(memory, address)
        fields = {"mode": self.pick(0, 1, 2, 3), "masked": self.pick(0, 1), "shape": 0}
        used = {f.name: fields[f.name] for f in self.row.fields if f.name in fields}
        if self.row.mnemonic == "fe.run" and self.pick(0, 1):
            used["skipping_lanes"] = self.pick(256, 2048)
        has_init = any(f.name == "init" for f in self.row.fields)
        op = Operation(0x20, self.row.mnemonic, operands, self.desc, has_init and bool(self.pick(0, 1)), used)
        ends = {op.operands[name].memory: end for name, (_, end) in spans(op).items()}
        storage = Memories({name: ends.get(name, 0) + 100 for name in isa.MEMORIES}, DRAM_BASE)
        for array in storage.arrays.values():
            array[:] = self.rng.integers(0, 256, array.size, dtype=np.uint8)
        for name, buffer in open_operands(op, storage).items():
            self.fill(op, name, buffer)
        return op, storage

    def fill(self, op: Operation, name: str, buffer: np.ndarray) -> None:
        if op.mnemonic in ("ld", "st"):
            return
        kind = format_of(op, name)
        if kind in ("f32", "f16"):
            dtype = np.dtype(np.float32 if kind == "f32" else np.float16)
            values = self.reals(buffer.size // dtype.itemsize)
            if name == "par":
                values = np.abs(values)
            if op.mnemonic == "v.pack":
                lowest = -(1 << op.number("planes") - 1) if op.number("signed") else 0
                values = self.rng.integers(lowest, lowest + (1 << op.number("planes")), values.size)
                values = np.ldexp(values, -op.number("frac"))
            buffer[:] = values.astype(dtype).view(np.uint8)
        elif kind == "bits":
            buffer[:] = self.rng.integers(0, 256, buffer.size) & self.rng.integers(0, 256, buffer.size)
        elif kind == "slots":
            self.fill_slots(op, buffer, slot_channels(op, name))
        elif name == "label":
            buffer[:] = self.rng.integers(0, op.number("k"), buffer.size // 4).astype(np.int32).view(np.uint8)
        elif name == "scal":
            buffer[:4] = np.float32([0.125]).view(np.uint8)
            buffer[4:8] = np.uint32([self.pick(0, 1, 3, 1003, 5)]).view(np.uint8)
        elif name == "idx":
            buffer[:] = self.rng.integers(0, op.number("kh") * op.number("kw"), buffer.size)

    def reals(self, count: int) -> np.ndarray:
        values = self.rng.integers(-40, 40, count) / 16 * self.rng.choice([1, 1.1, 0.37], count)
        if self.special and count > 4:
            values[self.rng.integers(0, count, 2)] = [np.inf, np.nan]
            values[self.rng.integers(0, count, 2)] = [-0.0, 1e-7]
        return np.where(self.rng.random(count) < 0.2, 0, values).astype(np.float32)

    def fill_slots(self, op: Operation, buffer: np.ndarray, gblk: int) -> None:
        item = 4 if op.storage() == "f32" else 2
        for slot in buffer.reshape(-1, slot_bytes(gblk, item)):
            slot[:8] &= self.rng.integers(0, 256, 8, dtype=np.uint8)
            values = self.reals(gblk).astype(np.float32 if item == 4 else np.float16)
            slot[8 : 8 + gblk * item] = values.view(np.uint8)


def format_of(op: Operation, name: str) -> str:
    storage = op.storage()
    if op.mnemonic == "v.lif" and name == "so" and op.choice("counted") == "yes":
        return storage
    if name in ("s", "m", "ss", "so", "mo") or (
        op.mnemonic == "v.grad" and name == "u" and op.choice("seen") == "window"
    ):
        return "bits"
    if op.mnemonic == "v.pack":
        return storage if name == "src" else "raw"
    if op.mnemonic in ("v.pool", "v.unpool") and name in ("src", "dst"):
        form = op.choice(name)
        return storage if form == "storage" else form
    if op.mnemonic == "v.rng" and name in ("src", "dst"):
        return {"src": "f32", "dst": "bits"}[name]
    if op.mnemonic == "v.spread":
        return storage if name == "x" else "f32"
    if op.mnemonic in ("v.map", "v.drop") and name != "scal":
        return {"storage": storage, "row": "f32"}.get(op.choice(name), op.choice(name))
    if op.mnemonic == "v.reduce":
        source = {"rate": "bits", "count": "bits", "tsum": "slots", "bias": "slots"}.get(op.choice("kind"), storage)
        return source if name == "src" else "slots" if op.choice("kind") == "tsum" else "f32"
    if op.mnemonic in ("v.stat", "v.fold", "v.norm") and name in ("dst", "x", "src", "run"):
        return "slots" if name == "dst" and op.choice("kind") == "backward" else "f32"
    if op.mnemonic == "v.tune" and name == "dst":
        return "f32"
    if (op.mnemonic, name) in (("v.lif", "uo"), ("v.grad", "u")):
        return "slots" if op.choice("save_u" if name == "uo" else "seen") == "inside" else storage
    if name in ("go", "later") or (name == "g" and op.mnemonic != "v.opt"):
        return "slots"
    if name in ("x", "w", "lut", "us", "uo", "u", "gc", "cs", "gi"):
        return storage
    return "f32" if name in REALS else "raw"


def slot_channels(op: Operation, name: str) -> int:
    """Return the channels of a slot of an operand."""
    return op.number("ublk" if name in ("u", "uo") else "gblk")


def canonical(op: Operation, memories: Memories) -> dict[str, bytes]:
    """All bytes, with every NaN of a real operand replaced by one pattern (its payload is unspecified)."""
    operands = {} if op.mnemonic in ("ld", "st") else open_operands(op, memories)
    for name, buffer in operands.items():
        kind = format_of(op, name)
        if kind in ("f32", "f16"):
            values = buffer.copy().view(np.float32 if kind == "f32" else np.float16)
            values[np.isnan(values)] = np.nan
            buffer[:] = values.view(np.uint8)
        if kind == "slots":
            gblk, item = slot_channels(op, name), 4 if op.storage() == "f32" else 2
            for slot in buffer.reshape(-1, slot_bytes(gblk, item)):
                values = slot[8 : 8 + gblk * item].copy().view(np.float32 if item == 4 else np.float16)
                values[np.isnan(values)] = np.nan
                slot[8 : 8 + gblk * item] = values.view(np.uint8)
    return {name: array.tobytes() for name, array in memories.arrays.items()}


def copied(memories: Memories) -> Memories:
    twin = Memories({name: array.size for name, array in memories.arrays.items()}, DRAM_BASE)
    for name, array in memories.arrays.items():
        twin.arrays[name][:] = array
    return twin


@pytest.mark.parametrize("mnemonic", KERNELS)
@pytest.mark.parametrize("seed", range(24))
def test_fast_kernels_leave_the_bytes_of_the_reference(mnemonic: str, seed: int) -> None:
    op, memories = Builder(mnemonic, seed).operation()
    twin = copied(memories)
    try:
        expected = reference.execute(op, memories)
    except H2LearnError as error:
        with pytest.raises(H2LearnError, match=error.message[:20]):
            fast.execute(op, twin)
        return
    found = fast.execute(op, twin)
    assert found.counts == expected.counts
    assert all(type(count) is int for count in found.counts.values())
    assert canonical(op, twin) == canonical(op, memories)


@pytest.mark.parametrize("c", [16, 24, 70, 130])
@pytest.mark.parametrize("k", [7, 32, 33])
def test_groups_of_four_positions_leave_the_bytes_of_the_reference(c: int, k: int) -> None:
    """Sums of groups of 4 have kernels of their own, another one for few columns; channels come in words of 64."""

    class Groups(Builder):
        def draw_wu_run(self) -> None:
            self.draw_conv()
            self.desc |= {"c": c, "k": k, "fan": 4}

    for seed in range(4):
        op, memories = Groups("wu.run", seed).operation()
        twin = copied(memories)
        expected, found = reference.execute(op, memories), fast.execute(op, twin)
        assert found.counts == expected.counts
        assert canonical(op, twin) == canonical(op, memories)


@pytest.mark.parametrize("mnemonic", KERNELS)
def test_splitting_over_threads_changes_nothing(mnemonic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    three = team.Team(3)
    monkeypatch.setattr(prepared, "WORTH_A_PIECE", 1)
    monkeypatch.setattr(team, "_shared", lambda: three)
    for seed in range(100, 102):
        op, memories = Builder(mnemonic, seed).operation()
        twin = copied(memories)
        expected = reference.execute(op, memories)
        assert fast.execute(op, twin).counts == expected.counts
        assert canonical(op, twin) == canonical(op, memories)


@pytest.mark.parametrize("mnemonic", KERNELS)
def test_only_written_operands_change(mnemonic: str) -> None:
    for seed in range(200, 204):
        op, memories = Builder(mnemonic, seed).operation()
        before = copied(memories)
        reference.execute(op, memories)
        for name, array in memories.arrays.items():
            allowed = np.zeros(array.size, np.bool_)
            for operand, (start, end) in spans(op).items():
                if op.operands[operand].memory == name and operand in isa.BY_MNEMONIC[mnemonic].writes:
                    base = DRAM_BASE if name == "DRAM" else 0
                    allowed[start - base : end - base] = True
            assert np.array_equal(array[~allowed], before.arrays[name][~allowed])


@pytest.mark.parametrize("engine", [reference, fast])
@pytest.mark.parametrize(
    ("mnemonic", "field", "value"),
    [
        ("fe.run", "fan", 0),
        ("fe.fill", "fan", 9),
        ("be.run", "sh", 0),
        ("wu.run", "gblk", 0),
        ("be.wgt", "gblk", 65),
        ("v.pool", "kw", 0),
        ("v.loss", "kind", 0),
        ("v.opt", "kind", 4),
        ("v.stat", "kind", 5),
        ("v.fold", "kind", 0),
        ("v.norm", "kind", 2),
        ("v.reduce", "kind", 7),
        ("fe.run", "planes", 25),
        ("v.pack", "planes", 0),
        ("v.pack", "signed", 2),
        ("fe.run", "imgs", 1 << 20),
        ("be.fwd", "dtype", 5),
        ("v.lif", "n", 1 << 30),
    ],
)
def test_impossible_descriptors_are_faults(engine: object, mnemonic: str, field: str, value: int) -> None:
    op, memories = Builder(mnemonic, 1).operation()
    broken = dataclasses.replace(op, desc=op.desc | {field: value})
    with pytest.raises(H2LearnError) as caught:
        engine.execute(broken, memories)  # type: ignore[attr-defined]
    assert "pc 32" in caught.value.render() and mnemonic in caught.value.render()


@pytest.mark.parametrize("engine", [reference, fast])
@pytest.mark.parametrize("label", [-1, 3])
def test_label_outside_the_classes_is_a_fault(engine: object, label: int) -> None:
    builder = Builder("v.loss", 0)
    op, memories = builder.operation()
    op = dataclasses.replace(op, desc=op.desc | {"k": 3, "n": 1}, operands=op.operands | {"pos": Operand("DRAM", 0)})
    buffers = open_operands(op, memories)
    buffers["label"][:] = np.int32([label]).view(np.uint8)
    buffers["scal"][4:8] = np.uint32([1]).view(np.uint8)
    with pytest.raises(H2LearnError, match="label"):
        engine.execute(op, memories)  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("engine", [reference, fast])
def test_the_window_says_as_much_as_the_potential(engine: object, dtype: str) -> None:
    """Gradients from mask bits are those from potentials, bit for bit, and refused where more is needed."""
    found = 0
    for seed in range(40):
        builder = Builder("v.grad", seed)
        op, memories = builder.operation()
        plain = {"seen": 0, "surrogate": 0, "bounded": 0, "periodic": 0}
        op = dataclasses.replace(op, desc=op.desc | plain | {"dtype": int(dtype == "f16")}, kept={})
        if op.choice("spike") == "never" or builder.special:
            continue
        sizes = {name: end for name, (_, end) in spans(op).items()}
        memories = Memories({name: max(sizes.values()) + (1 << 15) for name in isa.MEMORIES}, DRAM_BASE)
        for name, buffer in open_operands(op, memories).items():
            builder.fill(op, name, buffer)
        n, k, item = op.number("n"), op.number("k"), np.float32 if dtype == "f32" else np.float16
        par = open_operands(op, memories)["par"].view(np.float32).reshape(-1, k)
        u = open_operands(op, memories)["u"].view(item).astype(np.float32).reshape(n, k)
        inside = np.abs(u - par[2]) < np.float32(op.desc["width"])
        twin = copied(memories)
        other = dataclasses.replace(op, desc=op.desc | {"seen": 1}, kept={})
        if op.choice("reset") == "hard" and op.choice("detach") == "no":
            with pytest.raises(H2LearnError, match="hard reset needs the potential"):
                engine.execute(other, twin)  # type: ignore[attr-defined]
            continue
        if op.choice("counted") == "yes" and op.choice("reset") == "hard":
            with pytest.raises(H2LearnError, match="to know what the reset left"):
                engine.execute(other, twin)  # type: ignore[attr-defined]
            continue
        expected = engine.execute(op, memories)  # type: ignore[attr-defined]
        packed = np.packbits(inside, axis=-1, bitorder="little").reshape(-1)
        open_operands(other, twin)["u"][:] = packed
        assert engine.execute(other, twin).counts == expected.counts  # type: ignore[attr-defined]
        for name in ("gc", "go"):
            assert np.array_equal(open_operands(op, memories)[name], open_operands(other, twin)[name]), seed
        found += 1
    assert found > 10
    curved = dataclasses.replace(other, desc=other.desc | {"surrogate": 2}, kept={})
    with pytest.raises(H2LearnError, match="says too little about the surrogate atan"):
        engine.execute(curved, twin)  # type: ignore[attr-defined]
    bounded = dataclasses.replace(op, desc=op.desc | {"seen": 1, "reset": 1, "bounded": 1}, kept={})
    with pytest.raises(H2LearnError, match="to know what the reset left"):
        engine.execute(bounded, twin)  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("engine", [reference, fast])
def test_potentials_inside_the_window_say_as_much_as_all(engine: object, dtype: str) -> None:
    """``v.lif`` keeps those inside in slots, and ``v.grad`` gives the same bits from them as from all potentials."""
    resets: set[str] = set()
    for seed in range(40):
        builder = Builder("v.grad", seed)
        op, memories = builder.operation()
        plain = {"seen": 0, "bounded": 0, "detach": seed % 2, "surrogate": seed // 2 % 2, "reset": seed // 4 % 4}
        plain |= {"dtype": int(dtype == "f16"), "n": min(op.number("n"), 33)}
        op = dataclasses.replace(op, desc=op.desc | plain, kept={})
        if op.choice("spike") == "never" or builder.special:
            continue
        other = dataclasses.replace(op, desc=op.desc | {"seen": 2}, kept={})
        memories = Memories(dict.fromkeys(isa.MEMORIES, 1 << 19), DRAM_BASE)
        twin = copied(memories)
        if op.choice("counted") == "yes" and op.choice("reset") == "hard":
            with pytest.raises(H2LearnError, match="to know what the reset left"):
                engine.execute(other, twin)  # type: ignore[attr-defined]
            continue
        for name, buffer in open_operands(op, memories).items():
            builder.fill(op, name, buffer)
        twin = copied(memories)
        n, k, item = op.number("n"), op.number("k"), np.float32 if dtype == "f32" else np.float16
        par = open_operands(op, memories)["par"].view(np.float32).reshape(-1, k)
        u = open_operands(op, memories)["u"].view(item).astype(np.float32).reshape(n, k)
        inside = np.full((n, -(-k // op.number("ublk")) * op.number("ublk")), np.nan, np.float32)
        inside[:, :k] = np.where(distances(op, u, par[2]) < np.float32(op.desc["width"]), u, np.nan)
        slots = open_operands(other, twin)["u"].reshape(-1, slot_bytes(op.number("ublk"), np.dtype(item).itemsize))
        for slot, values in zip(slots, inside.reshape(len(slots), -1), strict=True):
            kept = values[~np.isnan(values)].astype(item).view(np.uint8)
            slot[:8] = np.packbits(np.pad(~np.isnan(values), (0, 64 - values.size)), bitorder="little")
            slot[8 : 8 + kept.size] = kept
        expected = engine.execute(op, memories).counts  # type: ignore[attr-defined]
        expected |= {"live_inputs": int((~np.isnan(inside)).sum())}
        assert engine.execute(other, twin).counts == expected  # type: ignore[attr-defined]
        for name in ("gc", "go"):
            assert np.array_equal(open_operands(op, memories)[name], open_operands(other, twin)[name]), seed
        resets.add(f"{op.choice('reset')} {op.choice('detach')} {op.choice('surrogate')}")
    assert {"hard no rectangular", "hard no triangular", "soft no rectangular"} <= resets
    curved = dataclasses.replace(other, desc=other.desc | {"surrogate": 2, "counted": 0}, kept={})
    with pytest.raises(H2LearnError, match="says too little about the surrogate atan"):
        engine.execute(curved, twin)  # type: ignore[attr-defined]
    bounded = dataclasses.replace(other, desc=other.desc | {"surrogate": 0, "bounded": 1}, kept={})
    with pytest.raises(H2LearnError, match="to know what the reset left"):
        engine.execute(bounded, twin)  # type: ignore[attr-defined]
    without = dataclasses.replace(other, desc=other.desc | {"surrogate": 0, "counted": 0, "ublk": 0}, kept={})
    with pytest.raises(H2LearnError, match="ublk"):
        engine.execute(without, twin)  # type: ignore[attr-defined]


def distances(op: Operation, u: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Return how far potentials are from the threshold, or twice that from the nearest multiple above it."""
    with np.errstate(all="ignore"):
        turns = u / theta - np.float32(0.5)
        turned = theta * np.abs((turns - np.floor(turns)) * np.float32(2) - np.float32(1))
        near = np.abs(u - theta)
        return np.where((u < theta) | (op.choice("periodic") == "no"), near, turned)


@pytest.mark.parametrize("engine", [reference, fast])
def test_spikes_are_counted_from_the_threshold_on(engine: object) -> None:
    op, memories = Builder("v.lif", 0).operation()
    above = dataclasses.replace(op, desc=op.desc | {"counted": 1, "spike": 0}, kept={})
    with pytest.raises(H2LearnError, match="counted at u >= theta only"):
        engine.execute(above, memories)  # type: ignore[attr-defined]


@pytest.mark.parametrize("engine", [reference, fast])
@pytest.mark.parametrize(
    ("signed", "value", "fits"),
    [
        (0, 1.75, True),
        (0, -0.0, True),
        (0, 2.0, False),
        (0, -0.25, False),
        (0, 0.375, False),
        (0, np.nan, False),
        (0, np.inf, False),
        (1, -1.0, True),
        (1, 0.75, True),
        (1, 1.0, False),
        (1, -1.25, False),
    ],
)
def test_numbers_without_bit_planes_are_faults(engine: object, signed: int, value: float, fits: bool) -> None:
    """Three planes down to 1/4: 0 to 7/4, or signed -1 to 3/4."""
    op, memories = Builder("v.pack", 0).operation()
    shape = {"n": 1, "k": 2, "planes": 3, "frac": 2, "signed": signed, "dtype": 0}
    op = dataclasses.replace(op, desc=op.desc | shape, kept={})
    open_operands(op, memories)["src"][:] = np.float32([0.25, value]).view(np.uint8)
    if fits:
        engine.execute(op, memories)  # type: ignore[attr-defined]
        planes = np.unpackbits(open_operands(op, memories)["dst"].reshape(3, 1), axis=1, bitorder="little")[:, :2]
        weights = np.float32([0.25, 0.5, -1 if signed else 1])
        assert (planes.T @ weights).tolist() == [0.25, value]
        return
    with pytest.raises(H2LearnError, match=f"{value:g} is no .*3-bit .*multiple of 2\\^-2"):
        engine.execute(op, memories)  # type: ignore[attr-defined]


@pytest.mark.parametrize("engine", [reference, fast])
def test_bit_planes_sum_to_the_convolution_of_the_numbers(engine: object) -> None:
    """With dyadic weights every sum is exact: look-ups of planes give what multipliers give."""
    rng = np.random.default_rng(0)
    c, k, planes, frac = 5, 16, 4, 1
    numbers = rng.integers(-8, 8, (2, 4, 4, c))
    weights = (rng.integers(-8, 9, (9, c, k)) / 4).astype(np.float32)
    conv = {"imgs": 2, "oh": 2, "ow": 2, "kh": 3, "kw": 3, "sh": 1, "sw": 1, "c": c, "k": k, "fan": 4}
    conv |= {"planes": planes, "frac": frac, "signed": 1, "dtype": 0}
    memories = Memories(dict.fromkeys(isa.MEMORIES, 1 << 15))
    places = {name: Operand(memory, 0) for name, memory in (("acc", "A"), ("s", "S"), ("lut", "L"), ("w", "W"))}
    memories.arrays["W"][: weights.nbytes] = weights.reshape(-1).view(np.uint8)
    bits = (numbers[..., None, :] >> np.arange(planes)[:, None]) & 1
    packed = np.packbits(bits.astype(np.uint8), axis=-1, bitorder="little").reshape(-1)
    memories.arrays["S"][: packed.size] = packed
    empty = {f.name: 0 for f in isa.DESCRIPTOR_BY_NAME["conv"].fields}
    for mnemonic in ("fe.fill", "fe.run"):
        fields = {"shape": 0} if mnemonic == "fe.run" else {}
        operands = {name: places[name] for name in places if (name == "w") == (mnemonic == "fe.fill") or name == "lut"}
        work = engine.execute(Operation(0, mnemonic, operands, empty | conv, True, fields), memories)  # type: ignore[attr-defined]
    found = memories.arrays["A"][: 8 * k * 4].view(np.float32).reshape(2, 2, 2, k)
    windows = np.lib.stride_tricks.sliding_window_view(numbers / 2.0**frac, (3, 3), axis=(1, 2))
    assert np.array_equal(found, np.einsum("nyxcij,ijck->nyxk", windows, weights.reshape(3, 3, c, k)))
    assert work.counts["patterns"] == 8 * 9 * 2 * planes and work.counts["dense_products"] == 8 * 9 * c * k


@pytest.mark.parametrize("engine", [reference, fast])
def test_empty_tiles_do_nothing(engine: object) -> None:
    for mnemonic, field in [("fe.run", "imgs"), ("be.run", "oh"), ("v.lif", "n"), ("ld", "n1"), ("v.grad", "n")]:
        op, memories = Builder(mnemonic, 2).operation()
        before = copied(memories)
        engine.execute(dataclasses.replace(op, desc=op.desc | {field: 0}), memories)  # type: ignore[attr-defined]
        for name, array in memories.arrays.items():
            assert np.array_equal(array, before.arrays[name]), mnemonic
