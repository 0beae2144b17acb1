"""The instructions of FE, BE and WUE as blocks of calls (``prepared.py``); the arithmetic stands in ``kernels/``."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .kernels import engine_calls as calls
from .kernels.convolution import I32, Shape
from .kernels.rows import LANES
from .operation import Memories, Operation, input_shape, item_bytes, slot_bytes
from .prepared import Arguments, Builder, Prepared
from .regions import HALF
from .work import BACKWARD_MODES, issue_width, lane_passes, skips_zero_patterns, unit_count

Place = tuple[int, int]
"""Address and bytes."""
Maps = tuple[I32, I32, Shape]

_NOTHING: Place = (0, 0)
_TABLE_VALUES = 1 << 16  # WUE's tables at a time: they stay in the second-level cache
_MOST_GROUPS = 256
_THOUSANDTHS = 1000
_THIN = 2 * LANES  # outputs of a layer up to which sums are spread from the inputs


class Site(NamedTuple):
    """Where an instruction is executed: the places of its operands, and the memory for what it needs meanwhile.

    ``counting``: whether its work is to be counted.
    """

    places: dict[str, Place]
    memories: Memories
    counting: bool = True

    def builder(self) -> Builder:
        """Return what collects the calls."""
        return Builder(self.counting)

    def scratch(self, name: str, size: int, dtype: type[np.generic]) -> npt.NDArray[np.generic]:
        """Return ``size`` elements; the name must not be used twice in an instruction."""
        return self.memories.scratch(name, size + LANES, dtype)[:size]


class Lists(NamedTuple):
    """Live entries per position: channel (times a factor), value, and how many."""

    channels: npt.NDArray[np.generic]
    values: npt.NDArray[np.generic]
    counts: npt.NDArray[np.generic]

    def append_to(self, args: Arguments) -> Arguments:
        """Append the three arrays."""
        return args.array(self.channels).array(self.values).array(self.counts)


def fe_fill(op: Operation, site: Site) -> Prepared:
    """``fe.fill``: entry[p] = st(entry[p & (p-1)] + w[ctz(p)])."""
    c, k, fan, half = op.number("c"), op.number("k"), op.number("fan"), is_half(op)
    builder, units = site.builder(), taps(op) * -(-c // fan)
    size = (units << fan) * k
    weights, table = stored(builder, op, site, "w"), site.places["lut"]
    args = Arguments()
    args.memory(weights, 4)
    if half:
        tables = site.scratch("tables", size, np.float32)
        args.array(tables)
    else:
        args.memory(table, 4)
    args.numbers(c, k, fan, half)
    builder.call(calls.fill_call, args, units, size // 2)
    if half:
        builder.call(calls.narrow_call, Arguments().array(tables).memory(table, 2), size, size)
    adds = units * k * ((1 << fan) - 1 - fan)
    return builder.prepared({"entries": units * k * ((1 << fan) - 1), "adds": adds}, {"nonfinite": (calls.BROKEN, 1)})


def fe_run(op: Operation, site: Site) -> Prepared:
    """``fe.run``: acc += entry[tap][group][pattern], taps then groups ascending, zero patterns skipped.

    Of numbers in bit-planes every plane is a pattern of its own, whose entry counts by the weight of the plane.
    """
    c, k, fan, depth = op.number("c"), op.number("k"), op.number("fan"), op.number("planes")
    groups, maps, builder = -(-c // fan), forward_maps(op), site.builder()
    (ih, iw), positions, entries = input_shape(op), position_count(op), groups * max(1, depth)
    sources = op.number("imgs") * ih * iw
    listed, summed = (
        (calls.list_planes_call, calls.sum_planes_call) if depth else (calls.patterns_call, calls.tables_call)
    )
    lists = [site.scratch("rows", sources * entries, np.uint32)]
    if depth:
        lists.append(site.scratch("factors", sources * entries, np.float32))
    lists += [site.scratch(name, sources, np.uint32) for name in ("pattern counts", "spikes")]
    args = Arguments().memory(site.places["s"], 1).numbers(c, k, fan)
    if depth:
        args.numbers(depth, op.number("frac"), op.choice("signed") == "yes")
    for array in lists:
        args.array(array)
    builder.call(listed, args, sources, 4 * sources * entries)
    tables = stored(builder, op, site, "lut")
    units, columns = positions, maps[1]
    if not depth and _is_thin(op, k):
        summed, units = calls.spread_tables_call, op.number("imgs") * op.number("oh")
        columns, _ = columns_to(maps)
    args = Arguments().memory(site.places["acc"], 4).numbers(op.init).memory(tables, 4)
    for array in (*lists, maps[0], columns):
        args.array(array)
    args.numbers(*maps[2], entries, groups << fan, k)
    builder.call(summed, args, units, positions * taps(op) * entries * (k + 16) // 4)
    counts, result = {}, -1
    if skips_zero_patterns(op):
        passes, lanes, least = lane_passes(op)
        args = Arguments().array(lists[-2]).array(maps[0]).array(maps[1])
        args.numbers(*maps[2], op.number("imgs"), lanes, least)
        builder.count(calls.lanes_call, args, 1, extra=passes)
        counts, result = {"lane_cycles": (calls.LANES_TIME, 1)}, calls.LANES_TIME
    values = positions * taps(op) * c
    fixed = {"inputs": values * max(1, depth), "dense_products": values * k}
    return _looked_up(builder, k, positions * taps(op) * entries, fixed, counts, result)


def wu_run(op: Operation, site: Site) -> Prepared:
    """``wu.run``: acc += table(gradients of a group of positions)[spikes of a channel at these positions]."""
    c, k, fan = op.number("c"), op.number("k"), op.number("fan")
    builder, starts, shape = site.builder(), position_starts(op), forward_maps(op)[2]
    lists = gradient_lists(builder, op, site, "g", starts.size, calls.LIVE)
    groups, size = -(-starts.size // fan), (1 << fan) * k
    block = max(1, min(_MOST_GROUPS, _TABLE_VALUES // size, groups))
    tables = site.scratch("group tables", block * size, np.float32)
    fill = lists.append_to(Arguments()).numbers(starts.size, k, fan, is_half(op)).array(tables)
    add = Arguments().memory(site.places["acc"], 4).numbers(op.init).memory(site.places["s"], 1).array(tables)
    add.array(starts).numbers(*shape, c, k, fan, groups, block)
    units = taps(op) * -(-c // 64)
    for first in range(0, max(groups, 1), block):
        here = min(block, groups - first)
        builder.call(calls.group_call, fill, here, here * size // 2, first=first, extra=first)
        builder.call(calls.groups_call, add, units, taps(op) * c * here * (k + 32) // 4, extra=first)
    inputs = starts.size * taps(op) * c
    fixed = {
        "inputs": inputs,
        "dense_products": inputs * k,
        "groups": groups,
        "table_adds": groups * ((1 << fan) - 1 - fan) * k,
        "dense_inputs": starts.size * k,
    }
    counts = {"live_inputs": (calls.LIVE, 1)}
    return _looked_up(builder, k, groups * taps(op) * c, fixed, counts)


def _looked_up(
    builder: Builder,
    k: int,
    patterns: int,
    fixed: dict[str, int],
    counts: dict[str, tuple[int, int]],
    result: int = -1,
) -> Prepared:
    """Name the counts of look-ups as ``work.lookup_work`` does."""
    fixed |= {
        "patterns": patterns,
        "zero_patterns": patterns,
        "lookups": patterns * k,
    }
    counts |= {
        "zero_patterns": (calls.ADDS, -1),
        "adds": (calls.ADDS, k),
        "spikes": (calls.SPIKES, 1),
        "synaptic_operations": (calls.SPIKES, k),
        "nonfinite": (calls.BROKEN, 1),
    }
    return builder.prepared(fixed, counts, result=result)


def be_fwd(op: Operation, site: Site) -> Prepared:
    """``be.fwd``: acc += x * w, taps then channels ascending, zero inputs skipped."""
    c, k, builder = op.number("c"), op.number("k"), site.builder()
    ih, iw = input_shape(op)
    sources = op.number("imgs") * ih * iw
    lists = new_lists(site, sources, c)
    args = lists.append_to(Arguments().memory(stored(builder, op, site, "x"), 4).numbers(c, k))
    builder.call(calls.reals_call, args, sources, 2 * sources * c)
    weights = stored(builder, op, site, "w")
    weight_args = Arguments().memory(weights, 4)
    return _products(builder, op, site, weight_args, lists, forward_maps(op), c, k, "in")


def be_run(op: Operation, site: Site) -> Prepared:
    """``be.run``: acc += g * w over taps, then live k ascending; +0 where the mask is 0."""
    c, k, builder = op.number("c"), op.number("k"), site.builder()
    gradients = op.number("imgs") * op.number("gh") * op.number("gw")
    lists = gradient_lists(builder, op, site, "g", gradients, calls.PRODUCTS_BROKEN + 1, scale=c)
    weights = stored(builder, op, site, "w")
    transposed = site.scratch("transposed", taps(op) * c * k, np.float32)
    args = Arguments().memory(weights, 4).numbers(c, k).array(transposed)
    builder.call(calls.transpose_call, args, taps(op) * -(-k // 16), taps(op) * c * k)
    mode = BACKWARD_MODES[op.fields.get("mode", 0)]
    return _products(builder, op, site, Arguments().array(transposed), lists, backward_maps(op), k, c, mode)


def _products(
    builder: Builder,
    op: Operation,
    site: Site,
    weights: Arguments,
    lists: Lists,
    maps: Maps,
    in_width: int,
    out_width: int,
    mode: str,
) -> Prepared:
    """Append sums of products into ``acc``; counts as ``work.products_work`` names them."""
    positions = position_count(op)
    results = [site.scratch(name, positions, np.uint32) for name in ("live", "dense_inputs", "outputs")]
    masked, elements = "m" in site.places, positions * taps(op) * in_width * (out_width + 16) // 2
    args = Arguments().memory(site.places["acc"], 4).numbers(op.init)
    args.words += weights.words
    args.kept += weights.kept
    lists.append_to(args).array(maps[0])
    call, units = calls.products_call, positions
    if not masked and _is_thin(op, out_width):
        call, units = calls.spread_products_call, op.number("imgs") * op.number("oh")
        for column_map in columns_to(maps):
            args.array(column_map)
        args.numbers(*maps[2], op.mnemonic == "be.run", in_width, out_width)
    else:
        args.array(maps[1]).numbers(*maps[2], in_width, out_width)
        args.memory(site.places.get("m", _NOTHING), 1).numbers(masked)
    for array in results:
        args.array(array)
    builder.call(call, args, units, elements)
    args = Arguments()
    for array in results:
        args.array(array)
    longest = taps(op) * in_width
    room = 64 << (longest // 64).bit_length()
    args.numbers(out_width, issue_width(op), unit_count(op), room)
    args.array(site.scratch("buckets", 4 * room, np.uint16)).array(site.scratch("marks", 4 * room // 64, np.uint64))
    number, every = BACKWARD_MODES.index(mode), op.mnemonic == "be.run"
    start, modes = (0, len(BACKWARD_MODES)) if every else (number, 1)
    builder.count(calls.tally_call, args, modes, 10 * modes * positions, first=start, extra=start)
    first = calls.MODES + 3 * number
    counts = {
        "live_inputs": (calls.LIVE_INPUTS, 1),
        "live_outputs": (calls.LIVE_OUTPUTS, 1),
        "products": (calls.PRODUCTS, 1),
        "dense_products": (calls.DENSE_PRODUCTS, 1),
        "nonfinite": (calls.PRODUCTS_BROKEN, 1),
        "macs": (first, 1),
        "issue_cycles": (first + 1, 1),
        "pe_cycles": (first + 2, 1),
    }
    if every:
        counts |= {f"pe_cycles_{name}": (calls.MODES + 3 * i + 2, 1) for i, name in enumerate(BACKWARD_MODES)}
    fixed = {"positions": positions, "dense_outputs": positions * out_width}
    fixed["dense_inputs"] = _existing_inputs(op.number("imgs"), maps) * in_width if out_width else 0
    return builder.prepared(fixed, counts, result=first + 2)


def _existing_inputs(images: int, maps: Maps) -> int:
    """Return how many taps exist, over all positions."""
    return images * int((maps[0] >= 0).sum()) * int((maps[1] >= 0).sum())


def be_wgt(op: Operation, site: Site) -> Prepared:
    """``be.wgt``: acc += x * g, positions ascending, zero x and dead g skipped."""
    c, k, rows, builder = op.number("c"), op.number("k"), taps(op) * op.number("c"), site.builder()
    starts, shape = position_starts(op), forward_maps(op)[2]
    positions = starts.size
    lists = gradient_lists(builder, op, site, "g", positions, calls.LIVE_OUTPUTS)
    inputs, acc = stored(builder, op, site, "x"), site.places["acc"]
    dense, issues = site.scratch("dense", positions * k, np.float32), site.scratch("issues", positions, np.uint32)
    args = lists.append_to(Arguments()).numbers(k).array(dense).array(issues).numbers(issue_width(op))
    builder.call(calls.dense_call, args, positions, positions * k)
    flag = site.scratch("flag", 1, np.uint32)
    care = Arguments().memory(inputs, 4).memory(acc, 4).numbers(op.init).array(flag)
    builder.call(calls.care_call, care, 1)
    checked = inputs[1] // 4 + (0 if op.init else rows * k)
    builder.call(calls.care_call, care, _THOUSANDTHS, checked // 4, extra=1)
    per_row = [site.scratch(name, rows, np.int64) for name in ("row live", "row cycles", "row products")]
    args = lists.append_to(Arguments().memory(acc, 4).numbers(op.init).memory(inputs, 4))
    args.array(dense).array(starts).numbers(*shape, c, k).array(flag).array(issues)
    for array in per_row:
        args.array(array)
    builder.call(calls.weighted_call, args, rows, rows * positions * (k + 4) // 2)
    args = Arguments()
    for array in per_row:
        args.array(array)
    builder.count(calls.rows_call, args.numbers(unit_count(op)), 1)
    fixed = {
        "positions": positions,
        "dense_inputs": positions * rows,
        "dense_outputs": positions * k,
        "dense_products": positions * rows * k,
    }
    counts = {
        "live_inputs": (calls.LIVE_INPUTS, 1),
        "live_outputs": (calls.LIVE_OUTPUTS, 1),
        "products": (calls.PRODUCTS, 1),
        "macs": (calls.PRODUCTS, 1),
        "issue_cycles": (calls.MODES, 1),
        "pe_cycles": (calls.MODES + 1, 1),
        "nonfinite": (calls.PRODUCTS_BROKEN, 1),
    }
    return builder.prepared(fixed, counts, result=calls.MODES + 1)


PREPARERS: dict[str, Callable[[Operation, Site], Prepared]] = {
    "fe.fill": fe_fill,
    "fe.run": fe_run,
    "be.fwd": be_fwd,
    "be.run": be_run,
    "be.wgt": be_wgt,
    "wu.run": wu_run,
}


def gradient_lists(
    builder: Builder, op: Operation, site: Site, name: str, positions: int, counter: int, scale: int = 1
) -> Lists:
    """Append the listing of the live gradients (channels times ``scale``) of operand ``name``; returns the lists."""
    k = op.number("k")
    lists = new_lists(site, positions, k)
    args = Arguments().memory(site.places[name], 8).numbers(slot_words(op), is_half(op), k, op.number("gblk"), scale)
    builder.call(calls.decode_call, lists.append_to(args), positions, 2 * positions * k, extra=counter)
    return lists


def new_lists(site: Site, positions: int, width: int) -> Lists:
    """Return room for lists of up to ``width`` entries per position."""
    return Lists(
        site.scratch("channels", positions * width, np.uint32),
        site.scratch("values", positions * width, np.float32),
        site.scratch("list counts", positions, np.uint32),
    )


def stored(builder: Builder, op: Operation, site: Site, name: str) -> Place:
    """Return where the values of an operand are as float32; appends their widening when they are half."""
    place = site.places[name]
    if not is_half(op):
        return place
    values = site.scratch(f"wide {name}", place[1] // 2, np.float32)
    builder.call(calls.widen_call, Arguments().memory(place, 2).array(values), values.size, values.size)
    return values.ctypes.data, values.nbytes


def slot_words(op: Operation) -> int:
    """Return the 64-bit words of a gradient slot."""
    return slot_bytes(op.number("gblk"), item_bytes(op)) // 8


def taps(op: Operation) -> int:
    """Return the elements of a window."""
    return op.number("kh") * op.number("kw")


def position_count(op: Operation) -> int:
    """Return the output positions of a tile."""
    return op.number("imgs") * op.number("oh") * op.number("ow")


def is_half(op: Operation) -> bool:
    """Return whether storage is half precision."""
    return op.desc["dtype"] == HALF


def position_starts(op: Operation) -> npt.NDArray[np.uint64]:
    """Return per output position the number of the input position that tap (0, 0) reads."""
    return _starts(op.number("imgs"), *forward_maps(op)[2][:4], op.number("sh"), op.number("sw"))


@lru_cache(maxsize=256)
def _starts(images: int, ih: int, iw: int, oh: int, ow: int, down: int, across: int) -> npt.NDArray[np.uint64]:
    rows = np.arange(images)[:, None] * ih + np.arange(oh) * down
    return (rows[..., None] * iw + np.arange(ow) * across).astype(np.uint64).reshape(-1)


def forward_maps(op: Operation) -> Maps:
    """Return the input rows and columns that taps read, and the shape (``kernels/convolution.py``)."""
    oh, ow, kh, kw = (op.number(name) for name in ("oh", "ow", "kh", "kw"))
    rows, columns = _forward_map(oh, op.number("sh"), kh), _forward_map(ow, op.number("sw"), kw)
    return rows, columns, (*input_shape(op), oh, ow, kh, kw)


def backward_maps(op: Operation) -> Maps:
    """The same for the gradients that an input position takes part in; -1 where there is none."""
    oh, ow, kh, kw, gh, gw = (op.number(name) for name in ("oh", "ow", "kh", "kw", "gh", "gw"))
    rows = _backward_map(oh, op.number("py"), op.number("sh"), kh, gh)
    columns = _backward_map(ow, op.number("px"), op.number("sw"), kw, gw)
    return rows, columns, (gh, gw, oh, ow, kh, kw)


def _is_thin(op: Operation, width: int) -> bool:
    """Return whether the sums of an instruction are spread from its inputs; it pays where they meet several taps."""
    return width <= _THIN and op.number("kw") > 1


def columns_to(maps: Maps) -> tuple[I32, I32]:
    """Return the output column that each tap of an input column belongs to, or -1, and the taps of an output column."""
    _, columns, (_, in_columns, _, _, _, kw) = maps
    return _columns_to(columns.tobytes(), in_columns, kw)


@lru_cache(maxsize=256)
def _columns_to(columns_of: bytes, in_columns: int, kw: int) -> tuple[I32, I32]:
    columns = np.frombuffer(columns_of, np.int32).reshape(-1, kw)
    found = np.full((in_columns, kw), -1, np.int32)
    outputs, numbers = np.nonzero(columns >= 0)
    found[columns[outputs, numbers], numbers] = outputs
    return found.reshape(-1), np.asarray((columns >= 0).sum(axis=1), np.int32)


@lru_cache(maxsize=256)
def _forward_map(size: int, stride: int, kernel: int) -> I32:
    return np.asarray(np.arange(size)[:, None] * stride + np.arange(kernel), np.int32).reshape(-1)


@lru_cache(maxsize=256)
def _backward_map(size: int, offset: int, stride: int, kernel: int, limit: int) -> I32:
    there = np.arange(size)[:, None] + offset - np.arange(kernel)
    inside = (there >= 0) & (there % stride == 0) & (there // stride < limit)
    return np.where(inside, there // stride, -1).astype(np.int32).reshape(-1)
