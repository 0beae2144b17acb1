"""Sixteen lanes moved together and apart: chosen lanes to the front of a vector, and back to their places.

Processors with AVX-512 have an instruction for each; elsewhere a loop over the chosen lanes does the same. Functions
here emit LLVM code while an intrinsic is compiled; a choice is a 16-bit number, bit i for lane i.
"""

# numba.core comes without type annotations.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]  # comes without stubs
from numba.core import cgutils, types
from numba.extending import intrinsic

from .rows import LANES, load_lanes, splat, store_lanes

_SHORT, _U64 = ir.IntType(LANES), ir.IntType(64)
_BITS = ir.VectorType(ir.IntType(1), LANES)
_KINDS = {"float": "f32", "i32": "i32"}
_LANE_NUMBERS = ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(range(LANES)))
_FEATURE = "+avx512f"


def has_instructions(context: Any) -> bool:
    """Return whether the processor that Numba compiles for moves lanes by one instruction."""
    return _FEATURE in context.codegen().magic_tuple()[2].split(",")


def together(context: Any, builder: Any, vector: Any, chosen: Any, *, single: bool | None = None) -> Any:
    """Emit: the chosen lanes of a vector of 32-bit elements, in their order, in its first lanes; the others are any.

    ``single``: by the instruction (default: where there is one).
    """
    if has_instructions(context) if single is None else single:
        zeros = ir.Constant(vector.type, [0] * LANES)
        return _move(builder, "compress", vector, zeros, chosen)
    source, target = _spill(builder, vector), cgutils.alloca_once(builder, vector.type)
    with _chosen_lanes(builder, chosen) as (number, lane):
        builder.store(builder.load(_element(builder, source, lane)), _element(builder, target, number))
    return builder.load(target)


def apart(context: Any, builder: Any, vector: Any, chosen: Any, others: Any, *, single: bool | None = None) -> Any:
    """Emit the inverse of :func:`together`: the first lanes go to the chosen ones, the other lanes are ``others``'."""
    if has_instructions(context) if single is None else single:
        return _move(builder, "expand", vector, others, chosen)
    source, target = _spill(builder, vector), _spill(builder, others)
    with _chosen_lanes(builder, chosen) as (number, lane):
        builder.store(builder.load(_element(builder, source, number)), _element(builder, target, lane))
    return builder.load(target)


def first_lanes(builder: Any, count: Any) -> Any:
    """Emit the mask of the first ``count`` (uint64, at most 16) lanes."""
    ones = builder.sub(builder.shl(_U64(1), count), _U64(1))
    return builder.bitcast(builder.trunc(ones, _SHORT), _BITS)


def load_first(builder: Any, place: Any, count: Any) -> Any:
    """Emit the load of the first ``count`` lanes of a vector at a place; nothing behind them is read."""
    return load_lanes(builder, place, _U64(0), first_lanes(builder, count))


def store_first(builder: Any, vector: Any, place: Any, count: Any) -> None:
    """Emit the store of the first ``count`` lanes of a vector; nothing behind them is touched."""
    store_lanes(builder, vector, place, _U64(0), first_lanes(builder, count))


def count_chosen(builder: Any, chosen: Any) -> Any:
    """Emit how many lanes are chosen (uint64)."""
    return builder.ctpop(builder.zext(chosen, _U64))


@intrinsic
def pack_chosen(typing_context: Any, target: Any, to: Any, source: Any, at: Any, chosen: Any) -> Any:
    """``target[to ..]`` = those of the sixteen elements of ``source`` from ``at`` on that ``chosen`` has a bit for.

    Arrays of float32; nothing else is read or written.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits, place = _chosen_bits(builder, args[4]), _places(context, builder, signature, args)
        vector = load_lanes(builder, place(2), _U64(0), builder.bitcast(bits, _BITS))
        packed = together(context, builder, vector, bits)
        store_first(builder, packed, place(0), count_chosen(builder, bits))
        return context.get_dummy_value()

    return types.void(target, to, source, at, chosen), codegen


@intrinsic
def spread_chosen(typing_context: Any, target: Any, to: Any, source: Any, at: Any, chosen: Any) -> Any:
    """The inverse of ``pack_chosen``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits, place = _chosen_bits(builder, args[4]), _places(context, builder, signature, args)
        mask, packed = builder.bitcast(bits, _BITS), load_first(builder, place(2), count_chosen(builder, bits))
        spaced = apart(context, builder, packed, bits, ir.Constant(packed.type, [0.0] * LANES))
        store_lanes(builder, spaced, place(0), _U64(0), mask)
        return context.get_dummy_value()

    return types.void(target, to, source, at, chosen), codegen


@intrinsic
def list_chosen(
    typing_context: Any,
    channels: Any,
    to: Any,
    values: Any,
    start: Any,
    source: Any,
    at: Any,
    chosen: Any,
    first: Any,
    scale: Any,
) -> Any:
    """Append the chosen ones of sixteen channels to a list from ``to`` on: ``first`` + lane times ``scale`` (uint32).

    Their values, which stand together in ``source`` from ``at`` on, go to ``values`` from ``start`` on.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits, place = _chosen_bits(builder, args[6]), _places(context, builder, signature, args)
        count = count_chosen(builder, bits)
        numbers = builder.add(splat(builder, args[7]), builder.mul(_LANE_NUMBERS, splat(builder, args[8])))
        store_first(builder, together(context, builder, numbers, bits), place(0), count)
        store_first(builder, load_first(builder, place(4), count), place(2), count)
        return context.get_dummy_value()

    return types.void(channels, to, values, start, source, at, chosen, first, scale), codegen


def _chosen_bits(builder: Any, chosen: Any) -> Any:
    return builder.trunc(chosen, _SHORT)


def _places(context: Any, builder: Any, signature: Any, args: Any) -> Callable[[int], Any]:
    """Return what gives the place in an array (the argument of a number) that the argument behind it says."""

    def place(index: int) -> Any:
        data = context.make_array(signature.args[index])(context, builder, args[index]).data
        return builder.gep(data, [args[index + 1]])

    return place


def _move(builder: Any, name: str, vector: Any, others: Any, chosen: Any) -> Any:
    kind = vector.type
    function = ir.FunctionType(kind, [kind, kind, _BITS])
    name = f"llvm.x86.avx512.mask.{name}.v{LANES}{_KINDS[str(kind.element)]}"
    move = cgutils.get_or_insert_function(builder.module, function, name)
    return builder.call(move, [vector, others, builder.bitcast(chosen, _BITS)])


def _spill(builder: Any, vector: Any) -> Any:
    return cgutils.alloca_once_value(builder, vector)


def _element(builder: Any, vector: Any, number: Any) -> Any:
    first = builder.bitcast(vector, vector.type.pointee.element.as_pointer())
    return builder.gep(first, [number])


@contextmanager
def _chosen_lanes(builder: Any, chosen: Any) -> Iterator[tuple[Any, Any]]:
    """Emit a loop over the chosen lanes; gives the body how many came before and the lane."""
    left = _spill(builder, builder.zext(chosen, _U64))
    with cgutils.for_range(builder, count_chosen(builder, chosen), intp=_U64) as loop:
        rest = builder.load(left)
        yield loop.index, builder.cttz(rest, ir.IntType(1)(1))
        builder.store(builder.and_(rest, builder.sub(rest, _U64(1))), left)
