"""One dispatched instruction, the memories it works on, and the byte ranges that it touches.

Shared by the plain reference and the fast kernels; the arithmetic itself stands in ``reference/`` and ``fast.py``,
the contract for both in ``docs/semantics.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn import isa
from h2learn.backends.h2learn.errors import H2LearnError

from .aligned import CACHE_LINE, aligned_zeros

Bytes = npt.NDArray[np.uint8]
Span = tuple[int, int]
"""Absolute byte range ``[start, end)`` inside one memory."""

SCALARS_BYTES = 32
ADAM_KINDS = ("adam", "adamw")
BITMAP_BYTES = 8


@dataclass(frozen=True, slots=True)
class Operand:
    """An evaluated address register; for coordinate operands only ``address`` counts."""

    memory: str
    address: int


@dataclass(frozen=True, slots=True)
class Operation:
    """One dispatched instruction, everything absolute.

    ``desc`` holds the copied descriptor fields (enums as their index, F32 fields rounded to binary32), ``fields`` the
    remaining plain fields (``shape``, ``mode``, ``masked``); ``init`` is False where the row has no such field.
    ``kept`` holds what executions have worked out from the rest, for the next one.
    """

    pc: int
    mnemonic: str
    operands: dict[str, Operand]
    desc: dict[str, int | float]
    init: bool
    fields: dict[str, int]
    kept: dict[str, object] = field(default_factory=dict, compare=False, repr=False)

    def number(self, name: str) -> int:
        """Return an integer descriptor field."""
        return int(self.desc[name])

    def choice(self, name: str) -> str:
        """Return an enumerated descriptor field by name; raises H2LearnError when the index has no meaning."""
        index = int(self.desc[name])
        values = _ENUMS[self._descriptor(), name]
        if not 0 <= index < len(values):
            raise self.fault(f"descriptor field {name} is {index}, expected 0 to {len(values) - 1}")
        return values[index]

    def storage(self) -> str:
        """Return the storage type of the descriptor, ``"f32"`` or ``"f16"``."""
        return self.choice("dtype")

    def fault(self, message: str, hint: str = "") -> H2LearnError:
        """Return the error for a fault of this instruction."""
        return H2LearnError(message, location=f"pc {self.pc} ({self.mnemonic})", hint=hint)

    def _descriptor(self) -> str:
        return _DESCRIPTOR_OF[self.mnemonic]


@dataclass
class Work:
    """What timing and energy need to know about one executed instruction.

    Every instruction that computes reals has ``nonfinite`` (non-finite results written). Beside it:

    * ``ld st``: ``rows`` that exist, ``zero_rows`` that do not, DRAM ``bytes`` moved (slots: live bytes only)
    * ``fe.fill``: ``entries`` (2^fan - 1 per tap, group, output channel), ``adds``
    * ``fe.run wu.run``: ``patterns`` (fe: positions*taps*groups*planes; wu: groups*taps*c), ``zero_patterns`` among
      them, ``lookups`` = patterns*k, ``adds`` = non-zero patterns*k, ``spikes`` that took part of ``inputs`` bits,
      ``synaptic_operations`` = spikes*k, ``dense_products`` = values*k; wu also ``groups``, ``table_adds`` and
      ``live_inputs`` (live gradients) of ``dense_inputs``, fe.run that skips zero patterns ``lane_cycles``
    * ``be.fwd be.run be.wgt``: ``positions``, ``live_inputs`` (live (tap, channel) inputs summed over positions),
      ``live_outputs`` (of ``dense_inputs`` and ``dense_outputs``), ``products`` (live inputs x live outputs),
      ``dense_products``, and for the mode of the instruction ``macs`` (products not skipped), ``issue_cycles``,
      ``pe_cycles``; be.run also ``pe_cycles_<mode>``
    * ``v.*``: ``elements``; v.lif ``spikes``, ``masked_in``; v.lif and v.grad where there are any ``scaled``,
      ``synaptic``, ``curved`` and ``counted`` elements (gain and offset, synaptic currents, surrogates without a
      window, spikes as numbers); whatever writes slots ``live_outputs``, whatever reads slots ``live_inputs``
    """

    counts: dict[str, int] = field(default_factory=dict)


class Memories:
    """Byte storage by memory name; all bytes start as 0. The DRAM array covers ``[dram_base, dram_base + size)``.

    A multiple of 64 bytes in an address is one in this process too. The memories on the chip lie together.
    """

    def __init__(self, sizes: dict[str, int], dram_base: int = 0) -> None:
        self.dram_base = dram_base
        lines = {name: -(-size // CACHE_LINE) * CACHE_LINE for name, size in sizes.items() if name != "DRAM"}
        chip, self.arrays = aligned_zeros(sum(lines.values()), np.uint8), dict[str, Bytes]()
        ends = dict(zip(lines, accumulate(lines.values()), strict=True))
        for name, size in sizes.items():
            if name == "DRAM":
                base = dram_base % CACHE_LINE
                self.arrays[name] = aligned_zeros(base + size, np.uint8)[base:]
            else:
                first = ends[name] - lines[name]
                self.arrays[name] = chip[first : first + size]
        self.addresses = {name: int(array.ctypes.data) for name, array in self.arrays.items()}
        self._scratch: dict[str, npt.NDArray[Any]] = {}
        self._outgrown: list[npt.NDArray[Any]] = []

    def scratch(self, name: str, size: int, dtype: type[Any]) -> npt.NDArray[Any]:
        """Return ``size`` elements for executions to use; they stay where they are as long as this lives."""
        kept = self._scratch.get(name)
        if kept is None or kept.size < size:
            if kept is not None:
                self._outgrown.append(kept)
                size = max(size, 2 * kept.size)
            kept = self._scratch[name] = aligned_zeros(size, dtype)
        return kept[:size]

    def view(self, operand: Operand, nbytes: int) -> Bytes:
        """Return the ``nbytes`` bytes at an address as a view; raises H2LearnError when they are not all there."""
        array = self.arrays.get(operand.memory)
        if array is None:
            raise H2LearnError(f"there is no memory {operand.memory!r}", hint=f"memories: {', '.join(self.arrays)}")
        base = self.dram_base if operand.memory == "DRAM" else 0
        start = operand.address - base
        if nbytes and not (start >= 0 and start + nbytes <= array.size):
            raise H2LearnError(
                f"address range [{operand.address:#x}, {operand.address + nbytes:#x}) is outside memory"
                f" {operand.memory} [{base:#x}, {base + array.size:#x})",
                hint="check the address register's base and strides and the sizes in the descriptor",
            )
        return array[start : start + nbytes] if nbytes else array[:0]


def spans(op: Operation) -> dict[str, Span]:
    """Return the byte range of every memory operand that the instruction touches (ld, st: the hull of its rows).

    Raises H2LearnError when a descriptor field has a value that the instruction cannot work with.
    """
    if op.mnemonic in ("ld", "st"):
        return _transfer_spans(op)
    sizes = _SIZES[op.mnemonic](op)
    return {name: (op.operands[name].address, op.operands[name].address + size) for name, size in sizes.items()}


def open_operands(op: Operation, memories: Memories) -> dict[str, Bytes]:
    """Return a byte view of every range in ``spans``; raises H2LearnError with the pc when one is out of range."""
    try:
        return {
            name: memories.view(Operand(op.operands[name].memory, start), end - start)
            for name, (start, end) in spans(op).items()
        }
    except H2LearnError as error:
        if error.location is not None:
            raise
        raise op.fault(error.message, error.hint) from error


def not_fixed_point(op: Operation, value: float) -> H2LearnError:
    """Return the fault of a value that has no bit-planes of the descriptor's number and weight."""
    form = f"{op.number('planes')}-bit {'signed' if op.number('signed') else 'unsigned'}"
    return op.fault(
        f"{value:g} is no {form} multiple of 2^{-op.number('frac')}",
        "the model declares such numbers; give them, or compile with --mapping operand_form=multipliers",
    )


def operand_places(op: Operation, memories: Memories) -> dict[str, tuple[int, int]]:
    """Return address in this process and bytes of every range in ``spans``; raises as ``open_operands`` does."""
    places = {}
    for name, (start, end) in spans(op).items():
        array = memories.arrays.get(op.operands[name].memory)
        offset = start - (memories.dram_base if op.operands[name].memory == "DRAM" else 0)
        if array is None or (end > start and not (offset >= 0 and offset + end - start <= array.size)):
            open_operands(op, memories)  # raises
        places[name] = (memories.addresses[op.operands[name].memory] + offset, end - start)
    return places


def require(op: Operation, **limits: tuple[int, int]) -> None:
    """Raise H2LearnError when a descriptor field lies outside its inclusive (low, high) limits."""
    for name, (low, high) in limits.items():
        value = op.number(name)
        if not low <= value <= high:
            raise op.fault(f"descriptor field {name} is {value}, expected {low} to {high}")


def item_bytes(op: Operation) -> int:
    """Return the bytes of one value of the storage type."""
    return 4 if op.storage() == "f32" else 2


def slot_bytes(gblk: int, item: int) -> int:
    """Return the bytes of one gradient slot: bitmap, room for ``gblk`` values, rounded up to a multiple of 8."""
    return -(-(BITMAP_BYTES + gblk * item) // 8) * 8


def moved_bitmap_bytes(slot: int, item: int) -> int:
    """Return the bytes of a bitmap that a transfer of slots of ``slot`` bytes carries: those that have channels."""
    return min(BITMAP_BYTES, -(-((slot - BITMAP_BYTES) // item) // 8))


def slot_row_bytes(op: Operation, field: str = "gblk") -> int:
    """Return the bytes of all slots of one position with ``k`` channels, as many in each as the ``field`` says."""
    require(op, **{field: (1, 64)})
    gblk = op.number(field)
    return -(-op.number("k") // gblk) * slot_bytes(gblk, item_bytes(op))


def parameter_rows(op: Operation) -> int:
    """Return how many parameter rows a neuron instruction has."""
    return isa.PLAIN_PARAMETER_ROWS if op.choice("drive") == "plain" else len(isa.PARAMETER_ROWS)


def has_synapse(op: Operation) -> bool:
    """Return whether neurons have a second state, the synaptic current."""
    return op.choice("drive") in ("synapse", "delayed")


def input_shape(op: Operation) -> tuple[int, int]:
    """Return rows and columns (ih, iw) of the input tile of a convolution or pooling."""
    require(op, kh=(1, 255), kw=(1, 255), sh=(1, 255), sw=(1, 255))
    oh, ow = op.number("oh"), op.number("ow")
    ih = (oh - 1) * op.number("sh") + op.number("kh") if oh else 0
    iw = (ow - 1) * op.number("sw") + op.number("kw") if ow else 0
    return ih, iw


def transfer_range(op: Operation, dimension: int) -> tuple[int, int]:
    """Return the half-open range of indices whose rows (2) or columns (3) exist in DRAM."""
    count = op.number(f"n{dimension}")
    origin = op.operands["y" if dimension == 2 else "x"].address
    limit = op.number("ylim" if dimension == 2 else "xlim")
    low = min(max(-origin, 0), count)
    return low, max(low, min(count, limit - origin))


def _packed(channels: int) -> int:
    return -(-channels // 8)


_EXTENT = (1, (1 << 16) - 1)


def _taps(op: Operation) -> int:
    return op.number("kh") * op.number("kw")


def _positions(op: Operation) -> int:
    return op.number("imgs") * op.number("oh") * op.number("ow")


def _input_positions(op: Operation) -> int:
    ih, iw = input_shape(op)
    return op.number("imgs") * ih * iw


def _tables(op: Operation) -> int:
    require(op, fan=(1, 8))
    fan = op.number("fan")
    return _taps(op) * -(-op.number("c") // fan) * (1 << fan) * op.number("k") * item_bytes(op)


def _weights(op: Operation) -> int:
    require(op, c=_EXTENT, k=_EXTENT)
    return _taps(op) * op.number("c") * op.number("k")


def _fe_fill(op: Operation) -> dict[str, int]:
    require(op, kh=(1, 255), kw=(1, 255))
    return {"w": _weights(op) * item_bytes(op), "lut": _tables(op)}


def _fe_run(op: Operation) -> dict[str, int]:
    require(op, c=_EXTENT, k=_EXTENT)
    require(op, planes=(0, isa.MAX_PLANES), signed=(0, 1))
    spikes = _input_positions(op) * max(1, op.number("planes")) * _packed(op.number("c"))
    return {"acc": _positions(op) * op.number("k") * 4, "s": spikes, "lut": _tables(op)}


def _be_fwd(op: Operation) -> dict[str, int]:
    item = item_bytes(op)
    real = _input_positions(op) * op.number("c") * item
    return {"acc": _positions(op) * op.number("k") * 4, "x": real, "w": _weights(op) * item}


def _be_run(op: Operation) -> dict[str, int]:
    require(op, kh=(1, 255), kw=(1, 255), sh=(1, 255), sw=(1, 255))
    gradients = op.number("imgs") * op.number("gh") * op.number("gw") * slot_row_bytes(op)
    sizes = {"acc": _positions(op) * op.number("c") * 4, "g": gradients, "w": _weights(op) * item_bytes(op)}
    return sizes | ({"m": _positions(op) * _packed(op.number("c"))} if op.fields.get("masked") else {})


def _be_wgt(op: Operation) -> dict[str, int]:
    real = _input_positions(op) * op.number("c") * item_bytes(op)
    return {"acc": _weights(op) * 4, "x": real, "g": _positions(op) * slot_row_bytes(op)}


def _wu_run(op: Operation) -> dict[str, int]:
    require(op, fan=(1, 8))
    spikes = _input_positions(op) * _packed(op.number("c"))
    return {"acc": _weights(op) * 4, "s": spikes, "g": _positions(op) * slot_row_bytes(op)}


def _v_lif(op: Operation) -> dict[str, int]:
    require(op, k=_EXTENT)
    n, k = op.number("n"), op.number("k")
    real, bits = n * k * item_bytes(op), n * _packed(k)
    sizes = {"acc": n * k * 4, "par": parameter_rows(op) * k * 4, "us": real}
    if has_synapse(op):
        sizes["cs"] = real
    if op.choice("counted") == "yes":
        if op.choice("spike") != "ge":
            raise op.fault("spikes are counted at u >= theta only")
        sizes["so"] = real
    elif op.choice("spike") != "never":
        sizes |= {"ss": bits, "so": bits}
    if op.choice("save_u") != "no":
        sizes["uo"] = n * slot_row_bytes(op, "ublk") if op.choice("save_u") == "inside" else real
    if op.choice("save_m") == "yes":
        sizes["mo"] = bits
    return sizes


def _v_grad(op: Operation) -> dict[str, int]:
    require(op, k=_EXTENT)
    n, k = op.number("n"), op.number("k")
    real = n * k * item_bytes(op)
    sizes = {"gs": n * k * 4, "par": parameter_rows(op) * k * 4, "gc": real, "go": n * slot_row_bytes(op)}
    if has_synapse(op):
        sizes["gi"] = real
    if op.choice("spike") == "never":
        return sizes
    _check_reset(op)
    seen = op.choice("seen")
    if seen == "potential":
        sizes["u"] = real
    else:
        _check_window(op)
        sizes["u"] = n * (_packed(k) if seen == "window" else slot_row_bytes(op, "ublk"))
    return sizes if op.choice("counted") == "yes" else sizes | {"s": n * _packed(k)}


def _check_reset(op: Operation) -> None:
    """Raise H2LearnError for a reset without a gradient of its own."""
    if op.choice("reset") == "hard_delayed":
        raise op.fault(f"{op.mnemonic} cannot work on neurons with the reset hard_delayed")


def _check_window(op: Operation) -> None:
    """Raise H2LearnError unless a gradient needs no potential outside the window, and none at all if it sees bits."""
    bits, hard = op.choice("seen") == "window", op.choice("reset") == "hard"
    if op.choice("surrogate") not in (("rectangular",) if bits else ("rectangular", "triangular")):
        raise op.fault(f"the window says too little about the surrogate {op.choice('surrogate')}")
    if bits and hard and op.choice("detach") == "no":
        raise op.fault("the gradient through a hard reset needs the potential, not its window alone")
    if op.choice("bounded") == "yes" or (op.choice("counted") == "yes" and hard):
        raise op.fault("the gradient needs the potential, not its window alone, to know what the reset left of it")


def _v_tune(op: Operation) -> dict[str, int]:
    require(op, k=_EXTENT)
    n, k = op.number("n"), op.number("k")
    if op.choice("drive") != "plain":
        raise op.fault(f"v.tune cannot work on neurons with the drive {op.choice('drive')}")
    _check_reset(op)
    slots = n * slot_row_bytes(op)
    rows = {"dst": 8 * k, "par": parameter_rows(op) * k * 4}
    return rows | {"g": slots, "later": slots, "u": n * k * item_bytes(op), "s": n * _packed(k)}


_POOL_FORMATS = {
    ("avg", "bits", "storage"),
    ("avg", "f32", "f32"),
    ("sum", "bits", "storage"),
    ("sum", "f32", "f32"),
    ("max", "bits", "bits"),
    ("max", "f32", "f32"),
}


def _v_pool(op: Operation) -> dict[str, int]:
    require(op, k=_EXTENT)
    formats = (op.choice("kind"), op.choice("src"), op.choice("dst"))
    if formats not in _POOL_FORMATS:
        raise op.fault(f"{formats[0]} pooling from {formats[1]} to {formats[2]} does not exist")
    k = op.number("k")
    row = {"bits": _packed(k), "f32": 4 * k, "storage": item_bytes(op) * k}
    sizes = {"dst": _positions(op) * row[formats[2]], "src": _input_positions(op) * row[formats[1]]}
    return sizes | (_winners(op, _positions(op)) if formats[0] == "max" else {})


def _v_unpool(op: Operation) -> dict[str, int]:
    require(op, k=_EXTENT)
    require(op, kh=(1, 255), kw=(1, 255), sh=(1, 255), sw=(1, 255))
    formats = (op.choice("src"), op.choice("dst"))
    if formats not in {("f32", "f32"), ("slots", "slots")}:
        raise op.fault(f"unpooling from {formats[0]} to {formats[1]} does not exist")
    row = 4 * op.number("k") if formats[0] == "f32" else slot_row_bytes(op)
    source = op.number("imgs") * op.number("gh") * op.number("gw")
    sizes = {"dst": _positions(op) * row, "src": source * row}
    return sizes | (_winners(op, source) if op.choice("kind") == "max" else {})


def _winners(op: Operation, positions: int) -> dict[str, int]:
    if _taps(op) > 256:
        raise op.fault(f"a window of {_taps(op)} elements is too large to record its winner in 8 bits")
    return {"idx": positions * op.number("k")}


def _v_rng(op: Operation) -> dict[str, int]:
    require(op, k=_EXTENT, steps=(1, (1 << 32) - 1))
    positions, k = op.number("n") * op.number("steps"), op.number("k")
    return {"dst": positions * _packed(k), "src": positions * k * 4, "scal": SCALARS_BYTES}


def _v_drop(op: Operation) -> dict[str, int]:
    require(op, k=_EXTENT, steps=(1, (1 << 32) - 1))
    if op.choice("dst") == "bits":
        raise op.fault("v.drop cannot write bits")
    positions = op.number("n") * op.number("steps")
    sizes = {name: _element_bytes(op, op.choice(name), positions) for name in ("dst", "a")}
    return sizes | {"scal": SCALARS_BYTES}


def _element_bytes(op: Operation, form: str, positions: int) -> int:
    """Return the bytes of an operand of element-wise work."""
    k = op.number("k")
    if form == "slots":
        return positions * slot_row_bytes(op)
    row = {"f32": 4 * k, "bits": _packed(k), "storage": k * item_bytes(op)}
    return 4 * k if form == "row" else positions * row[form]


def _v_reduce(op: Operation) -> dict[str, int]:
    require(op, k=_EXTENT)
    n, k, kind = op.number("n"), op.number("k"), op.choice("kind")
    if kind not in ("rate", "count", "mean", "sum", "last", "max", "tsum", "bias"):
        raise op.fault(f"v.reduce cannot compute {kind}")
    if kind == "bias":
        return {"dst": k * 4, "src": n * slot_row_bytes(op)}
    require(op, steps=(1, (1 << 32) - 1))
    steps = op.number("steps")
    if kind == "tsum":
        return {"dst": n * slot_row_bytes(op), "src": steps * n * slot_row_bytes(op)}
    row = _packed(k) if kind in ("rate", "count") else k * item_bytes(op)
    return {"dst": n * k * 4, "src": steps * n * row}


def _v_map(op: Operation) -> dict[str, int]:
    require(op, k=_EXTENT)
    kind = op.choice("kind")
    if kind not in ("copy", "add", *isa.LEARNED_MAPS, *isa.GATE_MAPS):
        raise op.fault(f"v.map cannot compute {kind}")
    names = ("dst", "a", "b") if kind in isa.BINARY_MAPS else ("dst", "a")
    return {name: _element_bytes(op, op.choice(name), op.number("n")) for name in names}


def _v_pack(op: Operation) -> dict[str, int]:
    require(op, k=_EXTENT, planes=(1, isa.MAX_PLANES), signed=(0, 1))
    n, k = op.number("n"), op.number("k")
    return {"dst": n * op.number("planes") * _packed(k), "src": n * k * item_bytes(op)}


NORM_ROWS = {"sum": 1, "square": 2, "product": 3, "forward": 5, "backward": 6}
"""Kind of v.stat and v.norm -> parameter rows that it reads."""


def _norm_values(op: Operation, *kinds: str) -> int:
    """Return the values of a tile; raises H2LearnError unless the kind is one of ``kinds``."""
    require(op, k=_EXTENT)
    if op.choice("kind") not in kinds:
        raise op.fault(f"{op.mnemonic} cannot compute {op.choice('kind')}")
    return op.number("steps") * op.number("n") * op.number("positions") * op.number("k")


def _v_stat(op: Operation) -> dict[str, int]:
    values, k, kind = _norm_values(op, "sum", "square", "product"), op.number("k"), op.choice("kind")
    sizes = {"dst": 4 * k, "x": 4 * values, "par": 4 * k * NORM_ROWS[kind], "scal": SCALARS_BYTES}
    return sizes | ({"dst": 8 * k, "g": values // k * slot_row_bytes(op)} if kind == "product" else {})


def _v_fold(op: Operation) -> dict[str, int]:
    _norm_values(op, "mean", "deviation")
    return {**dict.fromkeys(("dst", "src", "run"), 4 * op.number("k")), "scal": SCALARS_BYTES}


def _v_norm(op: Operation) -> dict[str, int]:
    values, k, kind = _norm_values(op, "forward", "backward"), op.number("k"), op.choice("kind")
    sizes = {"dst": 4 * values, "x": 4 * values, "par": 4 * k * NORM_ROWS[kind]}
    if kind == "forward":
        return sizes
    slots = values // k * slot_row_bytes(op)
    return sizes | {"dst": slots, "g": slots, "scal": SCALARS_BYTES}


def _v_spread(op: Operation) -> dict[str, int]:
    require(op, k=_EXTENT, steps=(1, (1 << 32) - 1))
    values, steps = op.number("n") * op.number("k"), op.number("steps")
    return {"dst": 4 * steps * values, "src": 4 * values, "x": steps * values * item_bytes(op)}


def _v_loss(op: Operation) -> dict[str, int]:
    n, k = op.number("n"), op.number("k")
    if op.choice("kind") not in ("cross_entropy", "mse"):
        raise op.fault(f"v.loss cannot compute {op.choice('kind')}")
    require(op, k=_EXTENT)
    return {"loss": 4, "grad": n * k * 4, "logits": n * k * 4, "label": n * 4, "scal": SCALARS_BYTES}


def _v_opt(op: Operation) -> dict[str, int]:
    n, adam = op.number("n"), op.choice("kind") in ADAM_KINDS
    sizes = {"p": 4 * n, "g": 4 * n, "scal": SCALARS_BYTES}
    if adam or op.desc["momentum"] != 0:
        sizes["mom"] = 4 * n
    if adam:
        sizes["sq"] = 4 * n
    if op.storage() == "f16":
        sizes["w"] = 2 * n
    return sizes


def _transfer_spans(op: Operation) -> dict[str, Span]:
    if op.choice("mode") == "slots":
        slot = op.number("slot")
        if slot < BITMAP_BYTES or op.number("run") % slot:
            raise op.fault(f"a run of {op.number('run')} bytes is not a whole number of {slot}-byte slots")
    everything = [(0, op.number(f"n{d}")) for d in range(4)]
    existing = everything[:2] + [transfer_range(op, 2), transfer_range(op, 3)]
    on_chip, in_dram = ("dst", "src") if op.mnemonic == "ld" else ("src", "dst")
    on_chip_ranges = everything if op.mnemonic == "ld" else existing
    return {on_chip: _hull(op, on_chip, on_chip_ranges), in_dram: _hull(op, in_dram, existing)}


def _hull(op: Operation, name: str, ranges: list[tuple[int, int]]) -> Span:
    start = end = op.operands[name].address
    run = op.number("run")
    if not run or any(low >= high for low, high in ranges):
        return start, start
    for stride_field, (low, high) in zip(_STRIDES[name], ranges, strict=True):
        stride = op.number(stride_field)
        first, last = low * stride, (high - 1) * stride
        start, end = start + min(first, last), end + max(first, last)
    return start, end + run


_STRIDES = {name: tuple(f"{name[0]}s{d}" for d in range(4)) for name in ("src", "dst")}

_SIZES: dict[str, Callable[[Operation], dict[str, int]]] = {
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

_DESCRIPTOR_OF: dict[str, str] = {
    row.mnemonic: f.of for row in isa.INSTRUCTIONS for f in row.fields if f.kind is isa.Kind.DESC
}
_ENUMS: dict[tuple[str, str], tuple[str, ...]] = {
    (d.name, f.name): f.values for d in isa.DESCRIPTORS for f in d.fields if f.kind is isa.Kind.ENUM
}


def check_dispatch(functions: dict[str, object], where: str) -> None:
    """Raise ValueError unless ``functions`` has exactly the instructions that touch memory (called at import)."""
    rows = {row.mnemonic for row in isa.INSTRUCTIONS if row.reads or row.writes}
    if set(functions) != rows:
        raise ValueError(f"{where} and the instruction table differ in {sorted(set(functions) ^ rows)}")


check_dispatch({**_SIZES, "ld": None, "st": None}, "operation sizes")
