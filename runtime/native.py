"""What compiled code needs beyond Numba's own: memory by address, kernels by address, atomic words.

A *call* is a kernel behind one signature, ``call(args, extra, low, high, counts)``: ``args`` is the address of its
arguments (64-bit words, in the order in which the call reads them), ``[low, high)`` the share of the work, and
``counts`` the address of the counters that it adds to. It returns 1; an exception inside is printed and gives 0.
"""

# numba.core comes without type annotations; kernels follow Numba's typing rules.
# mypy: disable-error-code="no-untyped-call, no-any-return, assignment, call-arg, arg-type, attr-defined"

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]  # comes without stubs
from numba.core import cgutils, types
from numba.extending import intrinsic

from .jit import jit

I64 = npt.NDArray[np.int64]
_WORD = ir.IntType(64)
_SMALL = (1, 2, 4, 8, 16)  # bytes that are copied by one load and one store
_BLOCKS = (64, 32, 16, 8, 4, 2, 1)
_HAS_PAUSE = platform.machine() in ("x86_64", "AMD64")
_CALL = "int64(int64, int64, int64, int64, int64)"


class Call:
    """A function of the signature above that reads ``words`` words; compiled when its address is first asked for."""

    def __init__(self, function: Callable[..., int], words: int) -> None:
        self.name = function.__name__
        self.words = words
        self._function = function

    @cached_property
    def address(self) -> int:
        """The address of the compiled function, valid as long as this object lives."""
        self._compiled = compile_call(self._function)
        return int(self._compiled.address)


def call(words: int) -> Callable[[Callable[..., int]], Call]:
    """Make a call of a function that reads so many words of arguments."""
    return lambda function: Call(function, words)


def compile_call(function: Callable[..., int]) -> Any:
    """Compile with strict IEEE arithmetic; cached on disk where that is possible (``jit`` warns where it is not)."""
    try:
        return numba.cfunc(_CALL, cache=True, error_model="numpy")(function)
    except RuntimeError as error:
        if "cache" not in str(error):
            raise
        return numba.cfunc(_CALL, error_model="numpy")(function)


@intrinsic
def pointer_to(typing_context: Any, address: Any) -> Any:
    """Return the memory at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


@intrinsic
def word_at(typing_context: Any, address: Any) -> Any:
    """Return the uint64 at an address, which need not be aligned."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], _WORD.as_pointer()), align=1)

    return types.uint64(types.int64), codegen


@intrinsic
def copy_bytes(typing_context: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy bytes from address to address; the ranges do not overlap."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        for size in _SMALL:
            kind = ir.IntType(8 * size).as_pointer()
            with builder.if_then(builder.icmp_unsigned("==", args[2], _WORD(size))):
                value = builder.load(builder.inttoptr(args[1], kind), align=1)
                builder.store(value, builder.inttoptr(args[0], kind), align=1)
        small = _WORD(0)
        for size in _SMALL:
            small = builder.or_(small, builder.zext(builder.icmp_unsigned("==", args[2], _WORD(size)), _WORD))
        with builder.if_then(builder.icmp_unsigned("==", small, _WORD(0))):
            target, source = (builder.inttoptr(address, cgutils.voidptr_t) for address in args[:2])
            cgutils.raw_memcpy(builder, target, source, args[2], _WORD(1), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def copy_rows(
    typing_context: Any, target: Any, source: Any, rows: Any, run: Any, down: Any, across: Any, log: Any, ahead: Any
) -> Any:
    """Copy ``rows`` rows of ``run`` bytes, ``down`` bytes apart in the target and ``across`` in the source.

    In blocks of ``2^log`` bytes, at most 64 and ``run``; the last one of a row may overlap the one before it. Memory
    ``ahead`` bytes behind what is read is fetched to the cache beforehand.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, source, rows, run, down, across, log, ahead = args
        block = builder.shl(_WORD(1), log)
        count, rest = builder.lshr(run, log), builder.and_(run, builder.sub(block, _WORD(1)))
        single = builder.and_(builder.icmp_unsigned("==", count, _WORD(1)), builder.icmp_unsigned("==", rest, _WORD(0)))
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, *[ir.IntType(32)] * 3])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")

        def move(size: int, to: Any, origin: Any) -> None:
            vector = ir.VectorType(ir.IntType(8), size).as_pointer()
            value = builder.load(builder.inttoptr(origin, vector), align=1)
            builder.store(value, builder.inttoptr(to, vector), align=1)

        def row(size: int, to: Any, origin: Any) -> None:
            with cgutils.for_range(builder, count, intp=_WORD) as loop:
                at = builder.mul(loop.index, _WORD(size))
                here = builder.add(origin, at)
                if size == _BLOCKS[0]:
                    there = builder.inttoptr(builder.add(here, ahead), cgutils.voidptr_t)
                    builder.call(fetch, [there, *(ir.IntType(32)(hint) for hint in (0, 3, 1))])
                move(size, builder.add(to, at), here)
            with builder.if_then(builder.icmp_unsigned("!=", rest, _WORD(0))):
                last = builder.sub(run, _WORD(size))
                move(size, builder.add(to, last), builder.add(origin, last))

        for size in _BLOCKS:
            with (
                builder.if_then(builder.icmp_unsigned("==", block, _WORD(size))),
                builder.if_else(single) as (whole, several),
            ):
                for branch, body in ((whole, move), (several, row)):
                    with branch, cgutils.for_range(builder, rows, intp=_WORD) as loop:
                        to = builder.add(target, builder.mul(loop.index, down))
                        body(size, to, builder.add(source, builder.mul(loop.index, across)))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), codegen


@intrinsic
def copy_words(typing_context: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy ``count`` 32-bit words from address to address, sixteen at a time; nothing behind them is touched."""
    lanes, integer = 16, ir.IntType(32)
    vector = ir.VectorType(integer, lanes)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, mask_kind = vector.as_pointer(), ir.VectorType(ir.IntType(1), lanes)
        load = ir.FunctionType(vector, [kind, integer, mask_kind, vector])
        store = ir.FunctionType(ir.VoidType(), [vector, kind, integer, mask_kind])
        load = cgutils.get_or_insert_function(builder.module, load, "llvm.masked.load.v16i32.p0")
        store = cgutils.get_or_insert_function(builder.module, store, "llvm.masked.store.v16i32.p0")
        numbers, zeros = ir.Constant(vector, list(range(lanes))), ir.Constant(vector, [0] * lanes)
        blocks = builder.lshr(builder.add(args[2], _WORD(lanes - 1)), _WORD(4))
        with cgutils.for_range(builder, blocks, intp=_WORD) as loop:
            first = builder.mul(loop.index, _WORD(lanes))
            left = builder.trunc(builder.sub(args[2], first), integer)
            single = builder.insert_element(ir.Constant(vector, ir.Undefined), left, integer(0))
            mask = builder.icmp_unsigned("<", numbers, builder.shuffle_vector(single, single, zeros))
            at = builder.mul(first, _WORD(4))
            origin = builder.inttoptr(builder.add(args[1], at), kind)
            to = builder.inttoptr(builder.add(args[0], at), kind)
            builder.call(store, [builder.call(load, [origin, integer(1), mask, zeros]), to, integer(1), mask])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@intrinsic
def clear_bytes(typing_context: Any, target: Any, count: Any) -> Any:
    """Set bytes from an address on to 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        small = _WORD(0)
        for size in _SMALL:
            kind, fits = ir.IntType(8 * size), builder.icmp_unsigned("==", args[1], _WORD(size))
            with builder.if_then(fits):
                builder.store(kind(0), builder.inttoptr(args[0], kind.as_pointer()), align=1)
            small = builder.or_(small, builder.zext(fits, _WORD))
        with builder.if_then(builder.icmp_unsigned("==", small, _WORD(0))):
            cgutils.memset(builder, builder.inttoptr(args[0], cgutils.voidptr_t), args[1], 0)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def invoke(typing_context: Any, address: Any, args: Any, extra: Any, low: Any, high: Any, counts: Any) -> Any:
    """Run the call at an address."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(_WORD, [_WORD] * 5)
        return builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])

    return types.int64(*[types.int64] * 6), codegen


@intrinsic
def load_word(typing_context: Any, words: Any, index: Any) -> Any:
    """Return a word that other threads write; what they wrote before it is seen."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_place(context, builder, signature, args), ordering="acquire", align=8)

    return types.int64(words, types.int64), codegen


@intrinsic
def store_word(typing_context: Any, words: Any, index: Any, value: Any) -> Any:
    """Write a word for other threads, behind everything written before it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature, args)
        builder.store_atomic(args[2], place, ordering="release", align=8)
        return context.get_dummy_value()

    return types.void(words, types.int64, types.int64), codegen


@intrinsic
def swap_word(typing_context: Any, words: Any, index: Any, old: Any, new: Any) -> Any:
    """Replace a word by ``new`` if it is ``old``; returns whether it was."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature, args)
        return builder.extract_value(builder.cmpxchg(place, args[2], args[3], "acq_rel", "acquire"), 1)

    return types.boolean(words, types.int64, types.int64, types.int64), codegen


@intrinsic
def add_word(typing_context: Any, words: Any, index: Any, value: Any) -> Any:
    """Add to a word, behind everything written before it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _place(context, builder, signature, args), args[2], "acq_rel")

    return types.int64(words, types.int64, types.int64), codegen


@intrinsic
def relax(typing_context: Any) -> Any:
    """Tell the core that this is a loop that waits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _HAS_PAUSE:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def give_way(typing_context: Any) -> Any:
    """Let another thread have this core (POSIX ``sched_yield``)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), codegen


def _place(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.gep(data, [args[1]])


@jit
def words_at(address: int, count: int) -> I64:
    """Return ``count`` 64-bit words at an address."""
    return numba.carray(pointer_to(address), (count,), np.int64)


@jit
def bare(array: I64) -> I64:
    """Return an array whose parts Numba does not count references to; the caller keeps its memory."""
    return numba.carray(pointer_to(array.ctypes.data), array.shape, np.int64)
