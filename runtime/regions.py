"""Which bytes an instruction reads and writes, derived from its descriptor alone.

Layouts are those of ``docs/semantics.md``. Tiles count as whole tiles and gradient slots as whole slots, also where an
instruction skips zeros; an operand that the descriptor switches off is no access.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from h2learn.backends.h2learn import isa
from h2learn.backends.h2learn.isa import DESCRIPTOR_BY_NAME, INSTRUCTIONS, PARAMETER_ROWS, PLAIN_PARAMETER_ROWS

from .operation import NORM_ROWS, Operation

Desc = Mapping[str, int | float]


def _value(descriptor: str, field: str, value: str) -> int:
    row = DESCRIPTOR_BY_NAME[descriptor]
    return row.fields[row.field_index(field)].values.index(value)


HALF = _value("conv", "dtype", "f16")
SLOTS_MODE = _value("xfer", "mode", "slots")
HARD, NO_RESET = _value("neuron", "reset", "hard"), _value("neuron", "reset", "none")
NEVER = _value("neuron", "spike", "never")
WINDOW, SEEN_INSIDE = _value("neuron", "seen", "window"), _value("neuron", "seen", "inside")
SAVED_INSIDE = _value("neuron", "save_u", "inside")
COUNTED, BOUNDED = _value("neuron", "counted", "yes"), _value("neuron", "bounded", "yes")
PLAIN = _value("neuron", "drive", "plain")
SYNAPTIC = (_value("neuron", "drive", "synapse"), _value("neuron", "drive", "delayed"))
MAX_POOL = _value("pool", "kind", "max")
FROM_BITS, FROM_SLOTS = _value("pool", "src", "bits"), _value("pool", "src", "slots")
TO_BITS, TO_F32 = _value("pool", "dst", "bits"), _value("pool", "dst", "f32")
TO_STORAGE, TO_SLOTS = _value("pool", "dst", "storage"), _value("pool", "dst", "slots")
SUM = _value("vec", "kind", "sum")
RATE, MEAN, LAST = _value("vec", "kind", "rate"), _value("vec", "kind", "mean"), _value("vec", "kind", "last")
COUNT, MAXIMUM = _value("vec", "kind", "count"), _value("vec", "kind", "max")
TIME_SUM = _value("vec", "kind", "tsum")
BINARY_MAPS = tuple(_value("vec", "kind", name) for name in isa.BINARY_MAPS)
ADAMS = (_value("opt", "kind", "adam"), _value("opt", "kind", "adamw"))
PRODUCT, BACKWARD = _value("norm", "kind", "product"), _value("norm", "kind", "backward")

_NORM = DESCRIPTOR_BY_NAME["norm"]
_NORM_KINDS = _NORM.fields[_NORM.field_index("kind")].values
_VEC = DESCRIPTOR_BY_NAME["vec"]
_FORMS = {name: _VEC.fields[_VEC.field_index(name)].values for name in ("dst", "a", "b")}

LOSS_SCALARS = (4, 4)  # valid sample count: offset and bytes in the run scalars
RNG_SCALARS = (16, 16)  # seed and first sample number
RATE_SCALARS = (0, 4)  # learning rate
STEP_SCALARS = (8, 4)  # step count


class Access(NamedTuple):
    """Rows of ``run`` bytes at ``offset + sum(i_d * strides_d)`` from the address of ``operand``.

    ``low`` and ``high`` bound the touched bytes, ``size`` is the number of bytes transferred.
    """

    operand: str
    offset: int
    run: int
    counts: tuple[int, ...]
    strides: tuple[int, ...]
    low: int
    high: int
    size: int
    write: bool


class Box(NamedTuple):
    """The rows of a transfer that exist: index ranges of dimensions 2 and 3, from ``low`` to below ``high``."""

    low2: int
    high2: int
    low3: int
    high3: int


def accesses(op: Operation) -> tuple[Access, ...]:
    """Return every access of ``op``, reads before writes; raises KeyError for an instruction without memory effects."""
    y, x = (op.operands["y"].address, op.operands["x"].address) if op.mnemonic in ("ld", "st") else (0, 0)
    return footprint(op.mnemonic, op.desc, op.init, op.fields, y, x)


def footprint(
    mnemonic: str, desc: Desc, init: bool, fields: Mapping[str, int], y: int = 0, x: int = 0
) -> tuple[Access, ...]:
    """Return the accesses of an instruction relative to its operands; ``y`` and ``x`` matter to transfers only."""
    if mnemonic in ("ld", "st"):
        return _transfer(mnemonic, desc, y, x)
    found = _RULES[mnemonic](desc, init, fields)
    return tuple(sorted((a for a in found if a.size), key=lambda access: access.write))


def existing_rows(desc: Desc, y: int, x: int) -> Box:
    """Return which rows of a transfer at coordinates ``y`` and ``x`` exist (an empty range when none does)."""
    low2, low3 = max(0, -y), max(0, -x)
    high2 = max(low2, min(int(desc["n2"]), int(desc["ylim"]) - y))
    high3 = max(low3, min(int(desc["n3"]), int(desc["xlim"]) - x))
    return Box(low2, high2, low3, high3)


def strided(
    operand: str, offset: int, run: int, counts: tuple[int, ...], strides: tuple[int, ...], write: bool
) -> Access:
    """Return an access with touching rows merged, dimensions of one iteration dropped and its bounds worked out."""
    size = run
    for count in counts:
        size *= count
    if not size:
        return Access(operand, offset, 0, (), (), offset, offset, 0, write)
    dims: list[tuple[int, int]] = []
    length = run
    for count, stride in zip(reversed(counts), reversed(strides), strict=True):
        if count == 1:
            continue
        if not dims and stride == length:
            length *= count
        elif dims and stride == dims[-1][0] * dims[-1][1]:
            dims[-1] = (dims[-1][0] * count, dims[-1][1])
        else:
            dims.append((count, stride))
    dims.reverse()
    low = offset + sum((count - 1) * stride for count, stride in dims if stride < 0)
    high = offset + length + sum((count - 1) * stride for count, stride in dims if stride > 0)
    return Access(operand, offset, length, tuple(d[0] for d in dims), tuple(d[1] for d in dims), low, high, size, write)


def item_bytes(desc: Desc) -> int:
    """Return the bytes of one value of the descriptor's storage type."""
    return 2 if desc["dtype"] == HALF else 4


def slot_bytes(desc: Desc, channels: str = "gblk") -> int:
    """Return the bytes of one slot: bitmap and room for as many values as the field ``channels`` says, in 8 bytes."""
    return (8 + int(desc[channels]) * item_bytes(desc) + 7) // 8 * 8


def groups(channels: int, per_group: int) -> int:
    """Return ``ceil(channels / per_group)``; 0 when groups have no size."""
    return -(-channels // per_group) if per_group else 0


def conv_input(desc: Desc) -> int:
    """Return the positions of a convolution's or pooling's input tile, all images; 0 without result positions."""
    imgs, oh, ow = int(desc["imgs"]), int(desc["oh"]), int(desc["ow"])
    if not imgs * oh * ow:
        return 0
    ih = (oh - 1) * int(desc["sh"]) + int(desc["kh"])
    return imgs * ih * ((ow - 1) * int(desc["sw"]) + int(desc["kw"]))


def conv_positions(desc: Desc) -> int:
    """Return the result positions of a convolution or pooling, all images."""
    return int(desc["imgs"]) * int(desc["oh"]) * int(desc["ow"])


def taps(desc: Desc) -> int:
    """Return the kernel positions."""
    return int(desc["kh"]) * int(desc["kw"])


def planes(desc: Desc) -> int:
    """Return the bit-planes of a value; spikes are one."""
    return max(1, int(desc["planes"]))


def _transfer(mnemonic: str, desc: Desc, y: int, x: int) -> tuple[Access, ...]:
    run = int(desc["run"])
    full = tuple(int(desc[f"n{d}"]) for d in range(4))
    box = existing_rows(desc, y, x)
    exist = (full[0], full[1], box.high2 - box.low2, box.high3 - box.low3)
    source = tuple(int(desc[f"ss{d}"]) for d in range(4))
    target = tuple(int(desc[f"ds{d}"]) for d in range(4))
    source_offset = box.low2 * source[2] + box.low3 * source[3]
    target_offset = box.low2 * target[2] + box.low3 * target[3]
    read = strided("src", source_offset, run, exist, source, False)
    if mnemonic == "ld":
        write = strided("dst", 0, run, full, target, True)
    else:
        write = strided("dst", target_offset, run, exist, target, True)
    return tuple(access for access in (read, write) if access.size)


def _read(operand: str, size: int, offset: int = 0) -> Access:
    return Access(operand, offset, size, (), (), offset, offset + size, size, False)


def _write(operand: str, size: int, offset: int = 0) -> Access:
    return Access(operand, offset, size, (), (), offset, offset + size, size, True)


def _update(operand: str, size: int, init: bool) -> list[Access]:
    return [_write(operand, size)] if init else [_read(operand, size), _write(operand, size)]


def _weights(desc: Desc) -> int:
    return taps(desc) * int(desc["c"]) * int(desc["k"]) * item_bytes(desc)


def _tables(desc: Desc) -> int:
    fan = int(desc["fan"])
    return taps(desc) * groups(int(desc["c"]), fan) * (1 << fan) * int(desc["k"]) * item_bytes(desc)


def _spikes(channels: int) -> int:
    return groups(channels, 8)


def _slots(positions: int, desc: Desc, channels: str = "gblk") -> int:
    return positions * groups(int(desc["k"]), int(desc[channels])) * slot_bytes(desc, channels)


def _fe_fill(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    return [_read("w", _weights(desc)), _write("lut", _tables(desc))]


def _fe_run(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    sums = conv_positions(desc) * int(desc["k"]) * 4
    lut = _tables(desc) if sums else 0
    spikes = conv_input(desc) * planes(desc) * _spikes(int(desc["c"]))
    return [_read("s", spikes), _read("lut", lut), *_update("acc", sums, init)]


def _be_fwd(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    real = conv_input(desc) * int(desc["c"]) * item_bytes(desc)
    sums = conv_positions(desc) * int(desc["k"]) * 4
    return [_read("x", real), _read("w", _weights(desc)), *_update("acc", sums, init)]


def _be_run(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    positions = conv_positions(desc)
    gradient = _slots(int(desc["imgs"]) * int(desc["gh"]) * int(desc["gw"]), desc)
    mask = positions * _spikes(int(desc["c"])) if fields["masked"] else 0
    sums = positions * int(desc["c"]) * 4
    return [_read("g", gradient), _read("w", _weights(desc)), _read("m", mask), *_update("acc", sums, init)]


def _be_wgt(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    real = conv_input(desc) * int(desc["c"]) * item_bytes(desc)
    sums = taps(desc) * int(desc["c"]) * int(desc["k"]) * 4
    return [_read("x", real), _read("g", _slots(conv_positions(desc), desc)), *_update("acc", sums, init)]


def _wu_run(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    spikes = conv_input(desc) * _spikes(int(desc["c"]))
    sums = taps(desc) * int(desc["c"]) * int(desc["k"]) * 4
    return [_read("s", spikes), _read("g", _slots(conv_positions(desc), desc)), *_update("acc", sums, init)]


def _parameters(desc: Desc) -> Access:
    rows = PLAIN_PARAMETER_ROWS if desc["drive"] == PLAIN else len(PARAMETER_ROWS)
    return _read("par", rows * 4 * int(desc["k"]))


def _v_lif(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    n, k = int(desc["n"]), int(desc["k"])
    counted = desc["counted"] == COUNTED
    spiking, resets = desc["spike"] != NEVER and not counted, desc["reset"] != NO_RESET
    membrane, bits = n * k * item_bytes(desc), n * _spikes(k)
    found = [_read("acc", n * k * 4), _parameters(desc), _write("us", membrane)]
    found += _update("cs", membrane, init) if desc["drive"] in SYNAPTIC else []
    found += [_read("us", membrane)] if not init else []
    found += [_read("ss", bits)] if not init and spiking and resets else []
    found += [_write("ss", bits), _write("so", bits)] if spiking else []
    found += [_write("so", membrane)] if counted else []
    saved = _slots(n, desc, "ublk") if desc["save_u"] == SAVED_INSIDE else membrane
    found += [_write("uo", saved)] if desc["save_u"] else []
    found += [_write("mo", bits)] if desc["save_m"] else []
    return found


def _v_grad(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    n, k = int(desc["n"]), int(desc["k"])
    spiking = desc["spike"] != NEVER
    membrane = n * k * item_bytes(desc)
    found = [_read("gs", n * k * 4), _parameters(desc), *_update("gc", membrane, init)]
    found += _update("gi", membrane, init) if desc["drive"] in SYNAPTIC else []
    seen = {WINDOW: n * _spikes(k), SEEN_INSIDE: _slots(n, desc, "ublk")}.get(int(desc["seen"]), membrane)
    found += [_read("u", seen)] if spiking else []
    fired = desc["reset"] == HARD or desc["bounded"] == BOUNDED
    found += [_read("s", n * _spikes(k))] if spiking and fired and desc["counted"] != COUNTED else []
    return [*found, _write("go", _slots(n, desc))]


def _v_tune(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    n, k = int(desc["n"]), int(desc["k"])
    slots = _slots(n, desc)
    found = [_read("g", slots), _read("later", slots), _read("u", n * k * item_bytes(desc)), _read("s", n * _spikes(k))]
    return [*found, _parameters(desc), *_update("dst", 8 * k, init)]


def _v_pool(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    k, positions = int(desc["k"]), conv_positions(desc)
    source = conv_input(desc) * (_spikes(k) if desc["src"] == FROM_BITS else 4 * k)
    per_position = {TO_BITS: _spikes(k), TO_F32: 4 * k, TO_STORAGE: k * item_bytes(desc)}.get(int(desc["dst"]), 0)
    winners = positions * k if desc["kind"] == MAX_POOL else 0
    return [_read("src", source), _write("dst", positions * per_position), _write("idx", winners)]


def _v_unpool(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    k, positions = int(desc["k"]), conv_positions(desc)
    pooled = int(desc["imgs"]) * int(desc["gh"]) * int(desc["gw"])
    source = _slots(pooled, desc) if desc["src"] == FROM_SLOTS else pooled * k * 4
    result = _slots(positions, desc) if desc["dst"] == TO_SLOTS else positions * k * 4
    winners = pooled * k if desc["kind"] == MAX_POOL else 0
    return [_read("src", source), _read("idx", winners), _write("dst", result)]


def _v_rng(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    positions, k = int(desc["n"]) * int(desc["steps"]), int(desc["k"])
    offset, size = RNG_SCALARS
    return [_read("src", positions * k * 4), _read("scal", size, offset), _write("dst", positions * _spikes(k))]


def _v_drop(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    positions = int(desc["n"]) * int(desc["steps"])
    offset, size = RNG_SCALARS
    source, target = (_elements(desc, name, positions) for name in ("a", "dst"))
    return [_read("a", source), _read("scal", size, offset), _write("dst", target)]


def _elements(desc: Desc, operand: str, positions: int) -> int:
    """Return the bytes of an operand of element-wise work."""
    k, form = int(desc["k"]), _FORMS[operand][int(desc[operand])]
    if form == "slots":
        return _slots(positions, desc)
    row = {"f32": k * 4, "bits": _spikes(k), "storage": k * item_bytes(desc)}
    return k * 4 if form == "row" else positions * row[form]


def _v_reduce(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    n, k, steps = int(desc["n"]), int(desc["k"]), int(desc["steps"])
    kind = int(desc["kind"])
    if kind in (RATE, COUNT):
        return [_read("src", steps * n * _spikes(k)), _write("dst", n * k * 4)]
    membrane = n * k * item_bytes(desc)
    if kind in (MEAN, SUM, MAXIMUM):
        return [_read("src", steps * membrane), _write("dst", n * k * 4)]
    if kind == LAST:
        return [_read("src", membrane, max(0, steps - 1) * membrane), _write("dst", n * k * 4)]
    if kind == TIME_SUM:
        return [_read("src", steps * _slots(n, desc)), _write("dst", _slots(n, desc))]
    return [_read("src", _slots(n, desc)), *_update("dst", k * 4, init)]


def _v_map(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    sizes = {name: _elements(desc, name, int(desc["n"])) for name in ("a", "b", "dst")}
    second = [_read("b", sizes["b"])] if desc["kind"] in BINARY_MAPS else []
    return [_read("a", sizes["a"]), *second, _write("dst", sizes["dst"])]


def _v_pack(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    n, k = int(desc["n"]), int(desc["k"])
    return [_read("src", n * k * item_bytes(desc)), _write("dst", n * planes(desc) * _spikes(k))]


def _norm_positions(desc: Desc) -> int:
    return int(desc["steps"]) * int(desc["n"]) * int(desc["positions"])


def _v_stat(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    k, positions, product = int(desc["k"]), _norm_positions(desc), desc["kind"] == PRODUCT
    offset, size = LOSS_SCALARS
    found = [_read("x", positions * k * 4), _read("par", 4 * k * _rows_of_kind(desc)), _read("scal", size, offset)]
    found += [_read("g", _slots(positions, desc))] if product else []
    return [*found, *_update("dst", 4 * k * (1 + product), init)]


def _v_fold(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    row = 4 * int(desc["k"])
    offset, size = LOSS_SCALARS
    return [_read("src", row), _read("scal", size, offset), _write("dst", row), *_update("run", row, False)]


def _v_norm(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    k, positions = int(desc["k"]), _norm_positions(desc)
    found = [_read("x", positions * k * 4), _read("par", 4 * k * _rows_of_kind(desc))]
    if desc["kind"] != BACKWARD:
        return [*found, _write("dst", positions * k * 4)]
    offset, size = LOSS_SCALARS
    slots = _slots(positions, desc)
    return [*found, _read("g", slots), _read("scal", size, offset), _write("dst", slots)]


def _rows_of_kind(desc: Desc) -> int:
    return NORM_ROWS[_NORM_KINDS[int(desc["kind"])]]


def _v_spread(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    values, steps = int(desc["n"]) * int(desc["k"]), int(desc["steps"])
    return [_read("src", values * 4), _read("x", steps * values * item_bytes(desc)), _write("dst", steps * values * 4)]


def _v_loss(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    n, k = int(desc["n"]), int(desc["k"])
    offset, size = LOSS_SCALARS
    found = [_read("logits", n * k * 4), _read("label", n * 4), _read("scal", size, offset)]
    return [*found, *_update("loss", 4, init), _write("grad", n * k * 4)]


def _v_opt(desc: Desc, init: bool, fields: Mapping[str, int]) -> list[Access]:
    n = int(desc["n"])
    adam = desc["kind"] in ADAMS
    found = [_read("scal", size, offset) for offset, size in (RATE_SCALARS, STEP_SCALARS)[: 1 + adam]]
    found += [_read("g", n * 4), *_update("p", n * 4, False)]
    found += _update("mom", n * 4, False) if adam or desc["momentum"] else []
    found += _update("sq", n * 4, False) if adam else []
    return [*found, _write("w", n * 2)] if desc["dtype"] == HALF else found


_RULES: dict[str, Callable[[Desc, bool, Mapping[str, int]], list[Access]]] = {
    "fe.fill": _fe_fill,
    "fe.run": _fe_run,
    "be.fwd": _be_fwd,
    "be.run": _be_run,
    "be.wgt": _be_wgt,
    "wu.run": _wu_run,
    "v.lif": _v_lif,
    "v.grad": _v_grad,
    "v.tune": _v_tune,
    "v.pool": _v_pool,
    "v.unpool": _v_unpool,
    "v.rng": _v_rng,
    "v.drop": _v_drop,
    "v.reduce": _v_reduce,
    "v.map": _v_map,
    "v.pack": _v_pack,
    "v.stat": _v_stat,
    "v.fold": _v_fold,
    "v.norm": _v_norm,
    "v.spread": _v_spread,
    "v.loss": _v_loss,
    "v.opt": _v_opt,
}

_UNCOVERED = {row.mnemonic for row in INSTRUCTIONS if row.reads or row.writes} - set(_RULES) - {"ld", "st"}
if _UNCOVERED:
    raise ValueError(f"no access rule for {', '.join(sorted(_UNCOVERED))}")
