"""Byte memories and the layouts in which tensors lie in them: one reader and one writer per layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.numerics import round_to_storage, storage_dtype

F32 = npt.NDArray[np.float32]
Bits = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

_BITMAP_BYTES = 8
_UNWRITTEN = 0xFF


class Memory:
    """Bytes from address 0 to ``limit``, allocated as they are touched; unwritten bytes read as ``fill``."""

    def __init__(self, name: str, limit: int, fill: int = _UNWRITTEN) -> None:
        self.name = name
        self.limit = limit
        self.fill = fill
        self.bytes: Bytes = np.zeros(0, dtype=np.uint8)

    def view(self, address: int, size: int) -> Bytes:
        """Return ``size`` bytes at ``address``, valid until the next call; raises H2LearnError outside the memory."""
        end = address + size
        if address < 0 or size < 0 or end > self.limit:
            raise H2LearnError(f"{self.name}[{address:#x}..{end:#x}] is outside the memory of {self.limit:#x} bytes")
        if end > len(self.bytes):
            grown = np.full(min(self.limit, max(end, 2 * len(self.bytes))), self.fill, dtype=np.uint8)
            grown[: len(self.bytes)] = self.bytes
            self.bytes = grown
        return self.bytes[address:end]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an operand starts."""

    memory: Memory
    address: int

    def offset(self, size: int) -> Place:
        """Return the place ``size`` bytes further on."""
        return Place(self.memory, self.address + size)


def read_numbers(place: Place, shape: Sequence[int], dtype: str) -> npt.NDArray[Any]:
    """Return a copy of plain little-endian numbers of NumPy type ``dtype``."""
    kind = np.dtype(dtype).newbyteorder("<")
    raw = place.memory.view(place.address, math.prod(shape) * kind.itemsize)
    return np.frombuffer(raw.tobytes(), dtype=kind).reshape(shape).copy()


def write_numbers(place: Place, values: npt.NDArray[Any], dtype: str) -> None:
    """Store numbers as NumPy type ``dtype``."""
    raw = np.ascontiguousarray(values, dtype=np.dtype(dtype).newbyteorder("<")).reshape(-1).view(np.uint8)
    place.memory.view(place.address, raw.size)[:] = raw


def read_real(place: Place, shape: Sequence[int], dtype: str) -> F32:
    """Return storage values (``f32`` or ``f16``) widened to float32."""
    return np.asarray(read_numbers(place, shape, storage_dtype(dtype).str), dtype=np.float32)


def write_real(place: Place, values: npt.NDArray[Any], dtype: str) -> None:
    """Store real values in storage type, rounded to nearest even."""
    write_numbers(place, round_to_storage(values, dtype), storage_dtype(dtype).str)


def read_bits(place: Place, shape: Sequence[int]) -> Bits:
    """Return packed bits ``[..., c]``; the last axis lies in ``ceil(c/8)`` bytes, lowest bit first."""
    *rows, channels = shape
    packed = read_numbers(place, [*rows, -(-channels // 8)], "u1")
    return np.unpackbits(packed, axis=-1, count=channels, bitorder="little").astype(np.bool_)


def write_bits(place: Place, values: Bits) -> None:
    """Pack bits along the last axis; pad bits are 0."""
    write_numbers(place, np.packbits(values, axis=-1, bitorder="little"), "u1")


def slot_bytes(gblk: int, dtype: str) -> int:
    """Return the size of one gradient slot."""
    return -(-(_BITMAP_BYTES + gblk * storage_dtype(dtype).itemsize) // 8) * 8


def read_grads(place: Place, shape: Sequence[int], gblk: int, dtype: str) -> tuple[Bits, F32]:
    """Return which gradients ``[..., k]`` are live, and their values (+0 where dead)."""
    *rows, channels = shape
    bitmap, payload = _slots(place, math.prod(rows), channels, gblk, dtype)
    rank = np.maximum(np.cumsum(bitmap, axis=-1) - 1, 0)
    values = np.where(bitmap, np.take_along_axis(payload, rank, axis=-1), np.float32(0))
    wide = (math.prod(rows), bitmap.shape[1] * gblk)
    live = bitmap.reshape(wide)[:, :channels].reshape(shape)
    return live, np.ascontiguousarray(values.reshape(wide)[:, :channels].reshape(shape), dtype=np.float32)


def write_grads(place: Place, values: F32, gblk: int, dtype: str) -> None:
    """Store gradients ``[..., k]`` as slots: live where not 0."""
    write_slots(place, values != 0, values, gblk, dtype)


def write_slots(place: Place, alive: Bits, values: F32, gblk: int, dtype: str) -> None:
    """Store the values ``[..., k]`` that are ``alive`` as slots, packed in ascending order of channels."""
    channels = values.shape[-1]
    rows = values.size // channels
    blocks = _blocks(channels, gblk)
    padded = np.zeros((rows, blocks * gblk), dtype=np.float32)
    padded[:, :channels] = values.reshape(rows, channels)
    padded = padded.reshape(rows, blocks, gblk)
    live = np.zeros((rows, blocks * gblk), dtype=np.bool_)
    live[:, :channels] = alive.reshape(rows, channels)
    live = live.reshape(rows, blocks, gblk)
    bitmap = np.zeros((rows, blocks, 8 * _BITMAP_BYTES), dtype=np.bool_)
    bitmap[..., :gblk] = live
    order = np.argsort(~live, axis=-1, kind="stable")
    packed = np.take_along_axis(padded, order, axis=-1).astype(storage_dtype(dtype))
    slots = np.zeros((rows, blocks, slot_bytes(gblk, dtype)), dtype=np.uint8)
    slots[..., :_BITMAP_BYTES] = np.packbits(bitmap, axis=-1, bitorder="little")
    payload = np.ascontiguousarray(packed).view(np.uint8)
    slots[..., _BITMAP_BYTES : _BITMAP_BYTES + payload.shape[-1]] = payload
    write_numbers(place, slots, "u1")


def _slots(place: Place, rows: int, channels: int, gblk: int, dtype: str) -> tuple[Bits, F32]:
    """Return bitmaps and packed values, both ``[rows, blocks, gblk]``."""
    blocks = _blocks(channels, gblk)
    raw = read_numbers(place, (rows, blocks, slot_bytes(gblk, dtype)), "u1")
    bitmap = np.unpackbits(raw[..., :_BITMAP_BYTES], axis=-1, bitorder="little")[..., :gblk].astype(np.bool_)
    payload = raw[..., _BITMAP_BYTES : _BITMAP_BYTES + gblk * storage_dtype(dtype).itemsize]
    return bitmap, np.ascontiguousarray(payload).view(storage_dtype(dtype)).astype(np.float32)


def _blocks(channels: int, gblk: int) -> int:
    if not gblk:
        raise H2LearnError("gradient slots need gblk of at least 1")
    return -(-channels // gblk)
