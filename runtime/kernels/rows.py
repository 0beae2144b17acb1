"""Ordered sums of table rows with the running sums held in vector registers.

Numba's own loops reload and store the running sum for every few rows and check for overlap each time, which dominates
thin layers; these intrinsics emit the loops with explicit LLVM vectors instead. Each output element is still summed in
list order with separate multiplications and additions (no contraction), so the result does not depend on the vector
width. Lists that are read here need ``LANES`` elements of room past their end.
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
FOUR = 4
_F32 = ir.FloatType()
_U32 = ir.IntType(32)
_I64 = ir.IntType(64)
_VECTOR = ir.VectorType(_F32, LANES)


@intrinsic
def add_rows(
    typing_context: Any, acc: Any, start: Any, rows: Any, offsets: Any, first: Any, count: Any, width: Any
) -> Any:
    """``acc[start:start+width] += rows[o:o+width]`` for each ``o`` of ``offsets[first:first+count]`` in order.

    ``acc`` and ``rows`` are flat float32 arrays, ``offsets`` uint32, the rest uint64 scalars.
    """
    return types.void(acc, start, rows, offsets, first, count, width), _emitter(valued=False)


@intrinsic
def add_four(
    typing_context: Any, acc: Any, starts: Any, rows: Any, offsets: Any, room: Any, counts: Any, width: Any
) -> Any:
    """As ``add_rows`` for four rows of ``acc`` side by side, so that thin rows need not wait for their own sums.

    ``starts``: of the four; their lists are ``room`` apart in ``offsets``, ``counts`` long (flat uint64 arrays).
    """
    return types.void(acc, starts, rows, offsets, room, counts, width), _four_emitter(valued=False)


@intrinsic
def add_four_products(
    typing_context: Any, acc: Any, starts: Any, rows: Any, offsets: Any, values: Any, room: Any, counts: Any, width: Any
) -> Any:
    """As ``add_products`` for four rows of ``acc`` side by side; see ``add_four``."""
    return types.void(acc, starts, rows, offsets, values, room, counts, width), _four_emitter(valued=True)


@intrinsic
def add_products(
    typing_context: Any, acc: Any, start: Any, rows: Any, offsets: Any, values: Any, count: Any, width: Any
) -> Any:
    """``acc[start:start+width] += values[i] * rows[o:o+width]`` for ``o = offsets[i]``, ``i < count`` in order."""
    return types.void(acc, start, rows, offsets, values, count, width), _emitter(valued=True)


@intrinsic
def add_rows_to_one(
    typing_context: Any, acc: Any, rows: Any, offsets: Any, first: Any, count: Any, width: Any, at: Any, base: Any
) -> Any:
    """``acc[at:at+width] += rows[base+o:base+o+width]`` for each ``o`` of ``offsets[first:first+count]`` in order."""
    return types.void(acc, rows, offsets, first, count, width, at, base), _spreader(1, valued=False)


@intrinsic
def add_rows_to_three(
    typing_context: Any,
    acc: Any,
    rows: Any,
    offsets: Any,
    first: Any,
    count: Any,
    width: Any,
    at: Any,
    base: Any,
    second_at: Any,
    second_base: Any,
    third_at: Any,
    third_base: Any,
) -> Any:
    """As ``add_rows_to_one`` for three rows of ``acc`` that do not overlap, side by side, each with its ``base``."""
    taken = (acc, rows, offsets, first, count, width, at, base, second_at, second_base, third_at, third_base)
    return types.void(*taken), _spreader(3, valued=False)


@intrinsic
def add_products_to_one(
    typing_context: Any,
    acc: Any,
    rows: Any,
    offsets: Any,
    values: Any,
    first: Any,
    count: Any,
    width: Any,
    at: Any,
    base: Any,
) -> Any:
    """As ``add_rows_to_one`` with each row multiplied by its value of ``values[first:first+count]``."""
    return types.void(acc, rows, offsets, values, first, count, width, at, base), _spreader(1, valued=True)


@intrinsic
def add_products_to_three(
    typing_context: Any,
    acc: Any,
    rows: Any,
    offsets: Any,
    values: Any,
    first: Any,
    count: Any,
    width: Any,
    at: Any,
    base: Any,
    second_at: Any,
    second_base: Any,
    third_at: Any,
    third_base: Any,
) -> Any:
    """As ``add_rows_to_three`` with each row multiplied by its value of ``values[first:first+count]``."""
    taken = (acc, rows, offsets, values, first, count, width, at, base, second_at, second_base, third_at, third_base)
    return types.void(*taken), _spreader(3, valued=True)


@intrinsic
def add_pair(
    typing_context: Any, target: Any, at: Any, left: Any, first: Any, right: Any, second: Any, width: Any
) -> Any:
    """``target[at:at+width] = left[first:first+width] + right[second:second+width]``; rows do not overlap."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, one, other = (
            builder.gep(context.make_array(signature.args[i])(context, builder, args[i]).data, [args[i + 1]])
            for i in (0, 2, 4)
        )

        def strip(column: Any, mask: Any) -> None:
            total = builder.fadd(load_lanes(builder, one, column, mask), load_lanes(builder, other, column, mask))
            store_lanes(builder, total, to, column, mask)

        columns_under_mask(builder, args[6], (1,), lambda column, vectors, mask: strip(column, mask))
        return context.get_dummy_value()

    return types.void(target, at, left, first, right, second, width), codegen


@intrinsic
def add_row(typing_context: Any, target: Any, at: Any, source: Any, first: Any, width: Any) -> Any:
    """``target[at:at+width] += source[first:first+width]``; best for few columns."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, origin = (
            builder.gep(context.make_array(signature.args[i])(context, builder, args[i]).data, [args[i + 1]])
            for i in (0, 2)
        )

        def strip(column: Any, vectors: int, mask: Any) -> None:
            for v in range(vectors):
                here = builder.add(column, _I64(v * LANES))
                total = builder.fadd(load_lanes(builder, to, here, mask), load_lanes(builder, origin, here, mask))
                store_lanes(builder, total, to, here, mask)

        columns_under_mask(builder, args[4], (2,), strip)
        return context.get_dummy_value()

    return types.void(target, at, source, first, width), codegen


@intrinsic
def append(typing_context: Any, target: Any, at: Any, source: Any, first: Any, count: Any, addend: Any) -> Any:
    """``target[at+i] = source[first+i] + addend`` for ``i < count``; up to ``LANES - 1`` elements more are touched.

    The arrays are uint32 or float32; for float32 the addend is ignored.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integers = signature.args[0].dtype == types.uint32
        vector = ir.VectorType(_U32 if integers else _F32, LANES)

        def vectors(index: int, start: Any) -> Any:
            data = context.make_array(signature.args[index])(context, builder, args[index]).data
            return builder.gep(data, [start])

        to, origin = vectors(0, args[1]), vectors(2, args[3])
        blocks = builder.udiv(builder.add(args[4], _I64(LANES - 1)), _I64(LANES))
        more = splat(builder, builder.trunc(args[5], _U32)) if integers else None
        with cgutils.for_range(builder, blocks, intp=_I64) as loop:
            index = builder.mul(loop.index, _I64(LANES))
            read = builder.bitcast(builder.gep(origin, [index]), vector.as_pointer())
            values = builder.load(read, align=4)
            if more is not None:
                values = builder.add(values, more)
            write = builder.bitcast(builder.gep(to, [index]), vector.as_pointer())
            builder.store(values, write, align=4)
        return context.get_dummy_value()

    return types.void(target, at, source, first, count, addend), codegen


@intrinsic
def transpose_square(
    typing_context: Any, source: Any, first: Any, width: Any, target: Any, start: Any, room: Any
) -> Any:
    """``target[start + j*room + i] = source[first + i*width + j]`` for ``i`` and ``j`` below ``LANES``.

    In registers: of rows ``step`` apart, pairs of blocks of ``step`` elements change places, for 8, 4, 2 and 1.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 3))

        def place(row: int, data: Any, start: Any, distance: Any) -> Any:
            return builder.gep(data, [builder.add(start, builder.mul(distance, _I64(row)))])

        rows = []
        for i in range(LANES):
            address = builder.bitcast(place(i, source, args[1], args[2]), _VECTOR.as_pointer())
            rows.append(builder.load(address, align=4))
        step = LANES // 2
        while step:
            low = [j if not j & step else j - step + LANES for j in range(LANES)]
            high = [j + step if not j & step else j + LANES for j in range(LANES)]
            for i in range(LANES):
                if not i & step:
                    pair = rows[i], rows[i + step]
                    rows[i], rows[i + step] = (
                        builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(_U32, LANES), chosen))
                        for chosen in (low, high)
                    )
            step //= 2
        for i, row in enumerate(rows):
            address = builder.bitcast(place(i, target, args[4], args[5]), _VECTOR.as_pointer())
            builder.store(row, address, align=4)
        return context.get_dummy_value()

    return types.void(source, first, width, target, start, room), codegen


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

    def strip(first: Any, vectors: int, mask: Any) -> None:
        _strip(builder, acc, rows, offsets, values, count, first, vectors, mask)

    columns_under_mask(builder, width, (4, 2), strip)


def columns_under_mask(
    builder: Any, width: Any, whole: tuple[int, ...], strip: Callable[[Any, int, Any], None]
) -> None:
    """Emit ``strip(first column, vectors, mask)`` over all columns: whole strips, then single vectors under a mask."""
    column = cgutils.alloca_once_value(builder, _I64(0))
    for vectors in whole:
        with _while_columns(builder, column, width, vectors * LANES - 1) as first:
            strip(first, vectors, None)
            builder.store(builder.add(first, _I64(vectors * LANES)), column)
    with _while_columns(builder, column, width, 0) as first:
        left = builder.trunc(builder.sub(width, first), _U32)
        lanes = ir.Constant(ir.VectorType(_U32, LANES), list(range(LANES)))
        strip(first, 1, builder.icmp_unsigned("<", lanes, splat(builder, left)))
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
        builder.store(load_lanes(builder, acc, column, mask), total)
    with cgutils.for_range(builder, count, intp=_I64) as loop:
        _add_listed(builder, sums, rows, offsets, values, loop.index, columns, mask)
    for total, column in zip(sums, columns, strict=True):
        store_lanes(builder, builder.load(total), acc, column, mask)


def _four_emitter(valued: bool) -> Callable[[Any, Any, Any, Any], Any]:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pointer(index: int) -> Any:
            return context.make_array(signature.args[index])(context, builder, args[index]).data

        def number(array: Any, p: int) -> Any:
            return builder.load(builder.gep(array, [_I64(p)]))

        def lists(index: int) -> list[Any]:
            return [builder.gep(pointer(index), [builder.mul(args[-3], _I64(p))]) for p in range(FOUR)]

        accs = [builder.gep(pointer(0), [number(pointer(1), p)]) for p in range(FOUR)]
        counts = [number(pointer(len(args) - 2), p) for p in range(FOUR)]
        values = lists(4) if valued else [None] * FOUR
        parts = list(zip(accs, lists(3), values, counts, strict=True))

        def strip(first: Any, vectors: int, mask: Any) -> None:
            _four_strips(
                builder, parts, pointer(2), [builder.add(first, _I64(v * LANES)) for v in range(vectors)], mask
            )

        columns_under_mask(builder, args[-1], (2,), strip)
        return context.get_dummy_value()

    return codegen


def _four_strips(
    builder: Any, parts: list[tuple[Any, Any, Any, Any]], rows: Any, columns: list[Any], mask: Any
) -> None:
    """Emit the sums of four rows in one strip: side by side as far as the shortest list goes, then one by one."""
    sums = [[cgutils.alloca_once(builder, _VECTOR) for _ in columns] for _ in parts]
    for (acc, *_), own in zip(parts, sums, strict=True):
        for total, column in zip(own, columns, strict=True):
            builder.store(load_lanes(builder, acc, column, mask), total)
    shared = parts[0][3]
    for *_, count in parts[1:]:
        shared = builder.select(builder.icmp_unsigned("<", count, shared), count, shared)

    def add(p: int, index: Any) -> None:
        _, offsets, values, _ = parts[p]
        _add_listed(builder, sums[p], rows, offsets, values, index, columns, mask)

    with cgutils.for_range(builder, shared, intp=_I64) as loop:
        for p in range(len(parts)):
            add(p, loop.index)
    for p, (*_, count) in enumerate(parts):
        with cgutils.for_range(builder, builder.sub(count, shared), intp=_I64) as loop:
            add(p, builder.add(shared, loop.index))
    for (acc, *_), own in zip(parts, sums, strict=True):
        for total, column in zip(own, columns, strict=True):
            store_lanes(builder, builder.load(total), acc, column, mask)


def _spreader(targets: int, *, valued: bool) -> Callable[[Any, Any, Any, Any], Any]:
    """Emit the sums of one list into rows of ``acc``: acc, rows, offsets, [values,] first, count, width, targets."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pointer(index: int, at: Any) -> Any:
            data = context.make_array(signature.args[index])(context, builder, args[index]).data
            return builder.gep(data, [at])

        first, count, width, *places = args[-3 - 2 * targets :]
        offsets, values = pointer(2, first), pointer(3, first) if valued else None
        parts = [(pointer(0, places[2 * i]), pointer(1, places[2 * i + 1])) for i in range(targets)]

        def strip(column: Any, vectors: int, mask: Any) -> None:
            columns = [builder.add(column, _I64(v * LANES)) for v in range(vectors)]
            sums = [[cgutils.alloca_once(builder, _VECTOR) for _ in columns] for _ in parts]
            for (acc, _), own in zip(parts, sums, strict=True):
                for total, here in zip(own, columns, strict=True):
                    builder.store(load_lanes(builder, acc, here, mask), total)
            with cgutils.for_range(builder, count, intp=_I64) as loop:
                for (_, rows), own in zip(parts, sums, strict=True):
                    _add_listed(builder, own, rows, offsets, values, loop.index, columns, mask)
            for (acc, _), own in zip(parts, sums, strict=True):
                for total, here in zip(own, columns, strict=True):
                    store_lanes(builder, builder.load(total), acc, here, mask)

        columns_under_mask(builder, width, (2, 1), strip)
        return context.get_dummy_value()

    return codegen


def _add_listed(
    builder: Any, sums: list[Any], rows: Any, offsets: Any, values: Any, index: Any, columns: list[Any], mask: Any
) -> None:
    """Emit the addition of the row that stands at ``index`` of a list, times its value, to sums in registers."""
    offset = builder.zext(builder.load(builder.gep(offsets, [index])), _I64)
    factor = splat(builder, builder.load(builder.gep(values, [index]))) if values is not None else None
    for total, column in zip(sums, columns, strict=True):
        term = load_lanes(builder, rows, builder.add(offset, column), mask)
        if factor is not None:
            term = builder.fmul(factor, term)
        builder.store(builder.fadd(builder.load(total), term), total)


def splat(builder: Any, scalar: Any) -> Any:
    """Emit a vector of equal lanes."""
    vector = ir.VectorType(scalar.type, LANES)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, _U32(0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(_U32, LANES), [0] * LANES))


def load_lanes(builder: Any, base: Any, index: Any, mask: Any) -> Any:
    """Emit the load of a vector from element ``index`` on, of the lanes of a mask (None: all); the others are 0."""
    vector, size, name = _vector_at(base)
    address = builder.bitcast(builder.gep(base, [index]), vector.as_pointer())
    if mask is None:
        return builder.load(address, align=size)
    kind = ir.FunctionType(vector, [vector.as_pointer(), _U32, mask.type, vector])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.{name}.p0")
    return builder.call(function, [address, _U32(size), mask, ir.Constant(vector, [0] * LANES)])


def store_lanes(builder: Any, vector: Any, base: Any, index: Any, mask: Any) -> None:
    """Emit the store of the lanes of a mask (None: all) from element ``index`` on."""
    _, size, name = _vector_at(base)
    address = builder.bitcast(builder.gep(base, [index]), vector.type.as_pointer())
    if mask is None:
        builder.store(vector, address, align=size)
        return
    kind = ir.FunctionType(ir.VoidType(), [vector.type, vector.type.as_pointer(), _U32, mask.type])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.store.{name}.p0")
    builder.call(function, [vector, address, _U32(size), mask])


def _vector_at(base: Any) -> tuple[Any, int, str]:
    """Return the vector type of a pointer's elements, bytes of one, and what LLVM calls the vector."""
    element = base.type.pointee
    if isinstance(element, ir.FloatType):
        return _VECTOR, 4, f"v{LANES}f32"
    return ir.VectorType(element, LANES), element.width // 8, f"v{LANES}i{element.width}"
