"""How operands lie in memory: numbers, bits, slots of gradients, and windows of maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn import numerics
from h2learn.runtime.operation import Bytes, Operation, item_bytes, slot_bytes

F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Buffers = dict[str, Bytes]
Scalar = TypeVar("Scalar", bound=np.generic)


def taps_of(op: Operation) -> int:
    """Return the positions of the kernel."""
    return op.number("kh") * op.number("kw")


def positions_shape(op: Operation) -> tuple[int, int, int]:
    """Return images, rows and columns of the results."""
    return op.number("imgs"), op.number("oh"), op.number("ow")


def rounded(op: Operation, values: F32) -> F32:
    """Return ``values`` rounded to the storage type."""
    return numerics.round_to_storage(values, op.storage())


def load_values(buffer: Bytes, storage: str) -> F32:
    """Return the numbers of type ``storage`` in a buffer as one row."""
    return buffer.copy().view(numerics.storage_dtype(storage)).astype(np.float32)


def save_values(buffer: Bytes, values: F32, storage: str) -> None:
    """Write ``values`` as numbers of type ``storage``, rounded to nearest even."""
    stored = np.ascontiguousarray(values).astype(numerics.storage_dtype(storage))
    buffer[:] = stored.reshape(-1).view(np.uint8)


def start_values(op: Operation, buffer: Bytes, shape: tuple[int, ...]) -> F32:
    """Return what sums go on from: zeros where the instruction begins them, else what the buffer holds."""
    return np.zeros(shape, np.float32) if op.init else load_values(buffer, "f32").reshape(shape)


def unpack_bits(buffer: Bytes, shape: tuple[int, ...]) -> Bool:
    """Return the bits of a buffer, each row of the last dimension in whole bytes."""
    packed = buffer.reshape(*shape[:-1], -(-shape[-1] // 8))
    return np.unpackbits(packed, axis=-1, count=shape[-1], bitorder="little").astype(np.bool_)


def pack_bits(buffer: Bytes, bits: Bool) -> None:
    """Write bits, each row of the last dimension in whole bytes."""
    buffer[:] = np.packbits(bits, axis=-1, bitorder="little").reshape(-1)


def under_tap(op: Operation, values: npt.NDArray[Scalar], tap: int) -> npt.NDArray[Scalar]:
    """Return what of padded maps ``[images][rows][columns]...`` lies under a kernel position, for every result."""
    ky, kx = divmod(tap, op.number("kw"))
    rows = np.arange(op.number("oh")) * op.number("sh") + ky
    columns = np.arange(op.number("ow")) * op.number("sw") + kx
    return values[:, rows[:, None], columns[None, :]]


def transposed_taps(op: Operation) -> Iterator[tuple[npt.NDArray[np.int64], ...]]:
    """Yield for every tap the result rows and columns it reaches, and the gradient rows and columns behind them."""

    def reach(size: int, offset: int, tap: int, stride: int, limit: int) -> tuple[npt.NDArray[np.int64], ...]:
        here = np.arange(size)
        there = here + offset - tap
        inside = (there >= 0) & (there % stride == 0) & (there // stride < limit)
        return here[inside], there[inside] // stride

    for tap in range(taps_of(op)):
        ky, kx = divmod(tap, op.number("kw"))
        y, ny = reach(op.number("oh"), op.number("py"), ky, op.number("sh"), op.number("gh"))
        x, nx = reach(op.number("ow"), op.number("px"), kx, op.number("sw"), op.number("gw"))
        yield y[:, None], x[None, :], ny[:, None], nx[None, :]


def decode_slots(op: Operation, buffer: Bytes, shape: tuple[int, ...], field: str = "gblk") -> tuple[F32, Bool]:
    """Return values and liveness ``[*shape][k]`` of slots of as many channels as the ``field`` says."""
    k, gblk, item = op.number("k"), op.number(field), item_bytes(op)
    values = np.zeros((int(np.prod(shape)), k), np.float32)
    alive = np.zeros(values.shape, np.bool_)
    blocks = -(-k // gblk)
    for index, slot in enumerate(buffer.reshape(-1, slot_bytes(gblk, item))):
        position, first = index // blocks, index % blocks * gblk
        bits = np.unpackbits(slot[:8], bitorder="little")[: min(gblk, k - first)].astype(np.bool_)
        packed = load_values(slot[8 : 8 + int(bits.sum()) * item], op.storage())
        channels = first + np.flatnonzero(bits)
        alive[position, channels] = True
        values[position, channels] = packed
    return values.reshape(*shape, k), alive.reshape(*shape, k)


def encode_slots(op: Operation, buffer: Bytes, values: F32, alive: Bool | None = None, field: str = "gblk") -> int:
    """Write the ``alive`` ones (None: those that are not 0) of ``values`` [positions][k] as slots; return how many."""
    k, gblk, item = op.number("k"), op.number(field), item_bytes(op)
    alive = values != 0 if alive is None else alive
    slots = buffer.reshape(len(values), -(-k // gblk), slot_bytes(gblk, item))
    for position, row in enumerate(values):
        for block, first in enumerate(range(0, k, gblk)):
            chosen = alive[position, first : first + gblk]
            bits = np.zeros(64, np.bool_)
            bits[: chosen.size] = chosen
            live = row[first : first + gblk][chosen]
            slots[position, block, :8] = np.packbits(bits, bitorder="little")
            save_values(slots[position, block, 8 : 8 + live.size * item], live, op.storage())
    return int(np.count_nonzero(alive))
