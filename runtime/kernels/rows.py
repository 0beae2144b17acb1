"""Ordered sums of table rows with the running sums held in vector registers.

Numba's own loops reload and store the running sum for every few rows, which dominates thin layers; these two
intrinsics emit the loop with explicit LLVM vectors instead. Each output element is still summed in list order with
separate multiplications and additions (no contraction), so the result does not depend on the vector width.
"""

# numba.core comes without type annotations.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]  # comes without stubs
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 16
_F32 = ir.FloatType()
_U32 = ir.IntType(32)
_I64 = ir.IntType(64)
_VECTOR = ir.VectorType(_F32, LANES)


@intrinsic
def add_rows(
    typing_context: Any, acc: Any, start: Any, rows: Any, offsets: Any, first: Any, count: Any, width: Any
) -> Any:
    """``acc[start:start+width] += rows[o:o+width]`` for each ``o`` of ``offsets[first:first+count]`` in order.

    ``acc`` and ``rows`` are flat float32 arrays, ``offsets`` uint64, the rest uint64 scalars.
    """
    return types.void(acc, start, rows, offsets, first, count, width), _emitter(valued=False)


@intrinsic
def add_products(
    typing_context: Any, acc: Any, start: Any, rows: Any, offsets: Any, values: Any, count: Any, width: Any
) -> Any:
    """``acc[start:start+width] += values[i] * rows[o:o+width]`` for ``o = offsets[i]``, ``i < count`` in order."""
    return types.void(acc, start, rows, offsets, values, count, width), _emitter(valued=True)


def _emitter(valued: bool) -> Callable[[Any, Any, Any, Any], Any]:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pointer(index: int) -> Any:
            return context.make_array(signature.args[index])(context, builder, args[index]).data

        acc = builder.gep(pointer(0), [args[1]])
        offsets = pointer(3) if valued else builder.gep(pointer(3), [args[4]])
        values = pointer(4) if valued else None
        _sum(builder, acc, pointer(2), offsets, values, args[-2], args[-1])
        return context.get_dummy_value()

    return codegen


def _sum(builder: Any, acc: Any, rows: Any, offsets: Any, values: Any, count: Any, width: Any) -> None:
    """Emit the sum over columns in strips of 4 and 2 vectors and single, masked ones."""
    column = cgutils.alloca_once_value(builder, _I64(0))
    for vectors in (4, 2):
        with _while_columns(builder, column, width, vectors * LANES - 1) as first:
            _strip(builder, acc, rows, offsets, values, count, first, vectors, None)
            builder.store(builder.add(first, _I64(vectors * LANES)), column)
    with _while_columns(builder, column, width, 0) as first:
        left = builder.trunc(builder.sub(width, first), _U32)
        lanes = ir.Constant(ir.VectorType(_U32, LANES), list(range(LANES)))
        mask = builder.icmp_unsigned("<", lanes, _splat(builder, left))
        _strip(builder, acc, rows, offsets, values, count, first, 1, mask)
        builder.store(builder.add(first, _I64(LANES)), column)


class _while_columns:
    """``while column + margin < width`` around the emitted body; gives the body the current column."""

    def __init__(self, builder: Any, column: Any, width: Any, margin: int) -> None:
        self.builder, self.column, self.width, self.margin = builder, column, width, margin

    def __enter__(self) -> Any:
        self.test = self.builder.append_basic_block("columns.test")
        body = self.builder.append_basic_block("columns.body")
        self.end = self.builder.append_basic_block("columns.end")
        self.builder.branch(self.test)
        self.builder.position_at_end(self.test)
        column = self.builder.load(self.column)
        more = self.builder.icmp_unsigned("<", self.builder.add(column, _I64(self.margin)), self.width)
        self.builder.cbranch(more, body, self.end)
        self.builder.position_at_end(body)
        return column

    def __exit__(self, *exception: object) -> None:
        self.builder.branch(self.test)
        self.builder.position_at_end(self.end)


def _strip(
    builder: Any, acc: Any, rows: Any, offsets: Any, values: Any, count: Any, first: Any, vectors: int, mask: Any
) -> None:
    columns = [builder.add(first, _I64(v * LANES)) for v in range(vectors)]
    sums = [cgutils.alloca_once(builder, _VECTOR) for _ in columns]
    for total, column in zip(sums, columns, strict=True):
        builder.store(_load(builder, acc, column, mask), total)
    with cgutils.for_range(builder, count, intp=_I64) as loop:
        offset = builder.load(builder.gep(offsets, [loop.index]))
        factor = _splat(builder, builder.load(builder.gep(values, [loop.index]))) if values is not None else None
        for total, column in zip(sums, columns, strict=True):
            term = _load(builder, rows, builder.add(offset, column), mask)
            if factor is not None:
                term = builder.fmul(factor, term)
            builder.store(builder.fadd(builder.load(total), term), total)
    for total, column in zip(sums, columns, strict=True):
        _store(builder, builder.load(total), acc, column, mask)


def _splat(builder: Any, scalar: Any) -> Any:
    vector = ir.VectorType(scalar.type, LANES)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, _U32(0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(_U32, LANES), [0] * LANES))


def _load(builder: Any, base: Any, index: Any, mask: Any) -> Any:
    address = builder.bitcast(builder.gep(base, [index]), _VECTOR.as_pointer())
    if mask is None:
        return builder.load(address, align=4)
    kind = ir.FunctionType(_VECTOR, [_VECTOR.as_pointer(), _U32, mask.type, _VECTOR])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{LANES}f32.p0")
    return builder.call(function, [address, _U32(4), mask, ir.Constant(_VECTOR, [0.0] * LANES)])


def _store(builder: Any, vector: Any, base: Any, index: Any, mask: Any) -> None:
    address = builder.bitcast(builder.gep(base, [index]), _VECTOR.as_pointer())
    if mask is None:
        builder.store(vector, address, align=4)
        return
    kind = ir.FunctionType(ir.VoidType(), [_VECTOR, _VECTOR.as_pointer(), _U32, mask.type])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.store.v{LANES}f32.p0")
    builder.call(function, [vector, address, _U32(4), mask])
