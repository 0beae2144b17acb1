"""How many bytes things take: the layouts of ``docs/semantics.md`` as plain arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

SLOT_BITMAP_BYTES = 8
MAX_SLOT_CHANNELS = 64


SLOT_FORMS = ("slots.", "inside.")
"""Beginnings of the formats that are slots: a bitmap and the live values, of gradients or of potentials."""


def slot_dtype(form: str) -> str:
    """Return the storage type of a format that is slots."""
    return form.partition(".")[2]


def item_bytes(dtype: str) -> int:
    """Return the bytes of one value of a storage type (``"f32"`` or ``"f16"``)."""
    return 4 if dtype == "f32" else 2


def slot_bytes(gblk: int, dtype: str) -> int:
    """Return the bytes of one gradient slot of ``gblk`` channels."""
    return SLOT_BITMAP_BYTES + -(-gblk * item_bytes(dtype) // 8) * 8


def moved_slot_bytes(gblk: int, item: int, density: float) -> float:
    """Return the bytes that move of a slot of ``gblk`` channels, a share ``density`` of them live."""
    return -(-gblk // 8) + density * gblk * item


def row_bytes(form: str, channels: int, gblk: int = 0) -> int:
    """Return the bytes of one position of ``channels`` values in format ``form``.

    Formats: ``bits``, ``u8``, ``f32``, ``f16``, ``i32``, and with ``gblk`` channels a slot ``slots.f32``, ``slots.f16``
    (gradients), ``inside.f32``, ``inside.f16`` (potentials inside the surrogate's window).
    """
    if form == "bits":
        return -(-channels // 8)
    if form.startswith(SLOT_FORMS):
        return -(-channels // gblk) * slot_bytes(gblk, slot_dtype(form))
    return channels * {"u8": 1, "f16": 2, "f32": 4, "i32": 4}[form]


def tensor_bytes(form: str, shape: Sequence[int], gblk: int = 0) -> int:
    """Return the bytes of a contiguous tensor of ``shape`` (channels last; a scalar is one channel)."""
    channels = shape[-1] if shape else 1
    return prod(shape[:-1]) * row_bytes(form, channels, gblk)


def slot_channels(channels: int, cap: int | None = None) -> int:
    """Return the channels per gradient slot: the largest legal divisor of ``channels`` up to 64 and ``cap``.

    Legal are the channel count itself and multiples of 8; a count above 64 without such a divisor takes 64, and then
    cannot be tiled.
    """
    limit = min(MAX_SLOT_CHANNELS, cap or MAX_SLOT_CHANNELS)
    if channels <= limit:
        return channels
    legal = [d for d in range(8, limit + 1, 8) if channels % d == 0]
    if legal:
        return legal[-1]
    return min(channels, MAX_SLOT_CHANNELS)
