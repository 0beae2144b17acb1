"""Convolutions and weight gradients of the ``lut`` interpreter, in the order of summation that the op states.

Images are time-major: an activation ``[T,N,H,W,C]`` (or ``[N,H,W,C]``) is ``[T*N,H,W,C]`` here. Loops run over what a
sum runs over; only independent elements are vectorised. All reals are float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.numerics import round_to_storage

from .attributes import ConvGeometry, Planes
from .base import Block

F32 = npt.NDArray[np.float32]
Bits = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]
Window = tuple[slice, slice, slice]

ZERO = np.float32(0)


def look_up_table(operands: F32, dtype: str) -> F32:
    """Return the sums of every subset of the ``fan`` rows ``[..., fan, K]`` as ``[..., 2^fan, K]``.

    ``entry[0] = 0``; ``entry[p] = st(entry[p & (p-1)] + operand[ctz(p)])``: bits join from the highest to the lowest.
    """
    fan = operands.shape[-2]
    entries = np.zeros((*operands.shape[:-2], 1 << fan, operands.shape[-1]), dtype=np.float32)
    for pattern in range(1, 1 << fan):
        rest = pattern & (pattern - 1)
        lowest = (pattern ^ rest).bit_length() - 1
        entries[..., pattern, :] = round_to_storage(entries[..., rest, :] + operands[..., lowest, :], dtype)
    return entries


def spike_convolution(
    s: Bits, w: F32, onto: F32 | Bits | None, geometry: ConvGeometry, fan_in: int, reduce_block: int, dtype: str
) -> F32:
    """``lut.fe_conv``: spikes ``[..,H,W,C]``, weights ``[taps,C,K]`` -> current ``[..,OH,OW,K]``, added to ``onto``."""
    return _look_ups([s], [np.float32(1)], w, onto, geometry, fan_in, reduce_block, dtype)


def number_convolution(
    x: F32,
    planes: Planes,
    w: F32,
    onto: F32 | Bits | None,
    geometry: ConvGeometry,
    fan_in: int,
    reduce_block: int,
    dtype: str,
) -> F32:
    """``lut.fe_conv`` on bit-planes of numbers ``[..,H,W,C]``; raises H2LearnError for one that has none."""
    scaled = np.ldexp(x.astype(np.float64), planes.frac)
    lowest = -(1 << (planes.count - 1)) if planes.signed else 0
    if np.any(scaled != np.floor(scaled)) or np.any((scaled < lowest) | (scaled >= lowest + (1 << planes.count))):
        raise H2LearnError(f"a number is no multiple of 2^{-planes.frac} that {planes.count} bit-planes hold")
    numbers = scaled.astype(np.int64)
    weights = [np.float32(np.ldexp(1.0, plane - planes.frac)) for plane in range(planes.count)]
    if planes.signed:
        weights[-1] = -weights[-1]
    bits = [(numbers >> plane) & 1 != 0 for plane in range(planes.count)]
    return _look_ups(bits, weights, w, onto, geometry, fan_in, reduce_block, dtype)


def _look_ups(
    planes: Sequence[Bits],
    weights: Sequence[np.float32],
    w: F32,
    onto: F32 | Bits | None,
    geometry: ConvGeometry,
    fan_in: int,
    reduce_block: int,
    dtype: str,
) -> F32:
    """Return the sums of the table entries of all planes, which count by the plane's weight: a power of two."""
    shape = planes[0].shape
    images, acc = [_padded(s, geometry) for s in planes], _accumulator(shape, geometry, w.shape[-1], onto)
    for first in range(0, shape[-1], reduce_block):
        last = min(first + reduce_block, shape[-1])
        for tap, window in enumerate(_windows(geometry, acc.shape)):
            for channel in range(first, last, fan_in):
                group = slice(channel, min(channel + fan_in, last))
                entries = look_up_table(_filled(w[tap, group], fan_in), dtype)
                for image, weight in zip(images, weights, strict=True):
                    patterns = _patterns(image[window][..., group], axis=-1)
                    acc = np.where(patterns[..., None] != 0, acc + weight * entries[patterns], acc)
    return acc.reshape(*shape[:-3], *acc.shape[1:])


def real_convolution(x: F32, w: F32, onto: F32 | Bits | None, geometry: ConvGeometry, reduce_block: int) -> F32:
    """``lut.be_conv``: reals ``[..,H,W,C]``, weights ``[taps,C,K]`` -> current ``[..,OH,OW,K]``, added to ``onto``."""
    images, acc = _padded(x, geometry), _accumulator(x.shape, geometry, w.shape[-1], onto)
    for first in range(0, x.shape[-1], reduce_block):
        for tap, window in enumerate(_windows(geometry, acc.shape)):
            for channel in range(first, min(first + reduce_block, x.shape[-1])):
                value = images[window][..., channel, None]
                acc = np.where(value != 0, acc + value * w[tap, channel], acc)
    return acc.reshape(*x.shape[:-3], *acc.shape[1:])


def input_gradient(
    gu: F32,
    w: F32,
    mask: Bits | None,
    onto: F32 | Bits | None,
    geometry: ConvGeometry,
    reduce_block: int,
    shape: tuple[int, ...],
) -> F32:
    """``lut.be_grad``: gradients ``[..,OH,OW,K]``, weights ``[taps,C,K]`` -> ``shape`` = ``[..,H,W,C]``."""
    gradients = _images(gu)
    (ph, pw), (height, width, channels) = geometry.padding, shape[-3:]
    acc = np.zeros((len(gradients), height + 2 * ph, width + 2 * pw, channels), dtype=np.float32)
    if onto is not None:
        acc[:, ph : ph + height, pw : pw + width] = _start(onto, shape)
    for first in range(0, gu.shape[-1], reduce_block):
        for tap, window in enumerate(_windows(geometry, gradients.shape)):
            for k in range(first, min(first + reduce_block, gu.shape[-1])):
                value = gradients[..., k, None]
                acc[window] = np.where(value != 0, acc[window] + value * w[tap, :, k], acc[window])
    result = acc[:, ph : ph + height, pw : pw + width].reshape(shape)
    return result if mask is None else np.where(mask, result, ZERO)


def spike_weight_gradient(
    s: Bits, gu: F32, geometry: ConvGeometry, fan_in: int, reduce_block: Block, dtype: str
) -> F32:
    """``lut.wu``: spikes ``[..,H,W,C]``, gradients ``[..,OH,OW,K]`` -> ``[taps,C,K]``."""
    inputs, gradients = _tap_inputs(s, gu, geometry), _stepped(gu)
    acc = np.zeros((geometry.taps, s.shape[-1], gu.shape[-1]), dtype=np.float32)
    for block in _blocks(gradients.shape[:4], reduce_block):
        spikes = _block_of(inputs, block, reduce_block, axis=1)
        live = _block_of(gradients, block, reduce_block, axis=0)
        for first in range(0, len(live), fan_in):
            group = slice(first, first + fan_in)
            entries = look_up_table(_filled(live[group], fan_in), dtype)
            patterns = _patterns(spikes[:, group], axis=1)
            acc = np.where(patterns[..., None] != 0, acc + entries[patterns], acc)
    return acc


def real_weight_gradient(x: F32, gu: F32, geometry: ConvGeometry, reduce_block: Block) -> F32:
    """``lut.be_wgt``: reals ``[..,H,W,C]``, gradients ``[..,OH,OW,K]`` -> ``[taps,C,K]``."""
    inputs, gradients = _tap_inputs(x, gu, geometry), _stepped(gu)
    acc = np.zeros((geometry.taps, x.shape[-1], gu.shape[-1]), dtype=np.float32)
    for block in _blocks(gradients.shape[:4], reduce_block):
        values = _block_of(inputs, block, reduce_block, axis=1)
        for position, g in enumerate(_block_of(gradients, block, reduce_block, axis=0)):
            value = values[:, position, :, None]
            acc = np.where((value != 0) & (g != 0), acc + value * g, acc)
    return acc


def bias_gradient(gu: F32, reduce_block: Block) -> F32:
    """``lut.bias_grad``: gradients ``[..,H,W,K]`` -> ``[K]``."""
    gradients = _stepped(gu)
    acc = np.zeros(gu.shape[-1], dtype=np.float32)
    for block in _blocks(gradients.shape[:4], reduce_block):
        for g in _block_of(gradients, block, reduce_block, axis=0):
            acc = np.where(g != 0, acc + g, acc)
    return acc


def embedded(w: F32, kernel: tuple[int, int], dilation: tuple[int, int], groups: int, shape: tuple[int, ...]) -> F32:
    """Return plain weights of ``shape`` that hold grouped or dilated ones, zeros in between."""
    result = np.zeros(shape, dtype=np.float32)
    for tap, channels, outputs, place in _parts(w.shape, kernel, dilation, groups):
        result[place, channels, outputs] = w[tap, :, outputs]
    return result


def extracted(g: F32, kernel: tuple[int, int], dilation: tuple[int, int], groups: int, shape: tuple[int, ...]) -> F32:
    """Return the gradient of grouped or dilated weights of ``shape`` out of that of plain ones."""
    result = np.zeros(shape, dtype=np.float32)
    for tap, channels, outputs, place in _parts(shape, kernel, dilation, groups):
        result[tap, :, outputs] = g[place, channels, outputs]
    return result


def _parts(
    shape: tuple[int, ...], kernel: tuple[int, int], dilation: tuple[int, int], groups: int
) -> Iterator[tuple[int, slice, slice, int]]:
    """Yield kernel place, plain input channels, output channels and plain kernel place of every part."""
    _, inner, k = shape
    width = (kernel[1] - 1) * dilation[1] + 1
    for (ky, kx), group in product(product(range(kernel[0]), range(kernel[1])), range(groups)):
        outputs = slice(group * k // groups, (group + 1) * k // groups)
        place = ky * dilation[0] * width + kx * dilation[1]
        yield ky * kernel[1] + kx, slice(group * inner, (group + 1) * inner), outputs, place


def _images(x: Array) -> Array:
    return x.reshape(-1, *x.shape[-3:])


def _stepped(x: F32) -> F32:
    """Return ``x`` with a time dimension."""
    return x if x.ndim == 5 else x[None]


def _padded(x: Array, geometry: ConvGeometry) -> Array:
    ph, pw = geometry.padding
    return np.pad(_images(x), ((0, 0), (ph, ph), (pw, pw), (0, 0)))


def _start(onto: F32 | Bits, shape: tuple[int, ...]) -> F32:
    """Return the images of ``shape`` at which sums start; without T it is the same at every step."""
    return np.array(_images(np.broadcast_to(onto, shape)), dtype=np.float32)


def _accumulator(shape: tuple[int, ...], geometry: ConvGeometry, k: int, onto: F32 | Bits | None) -> F32:
    if onto is not None:
        return _start(onto, (*shape[:-3], *geometry.extent(shape[-3], shape[-2]), k))
    images = int(np.prod(shape[:-3]))
    return np.zeros((images, *geometry.extent(shape[-3], shape[-2]), k), dtype=np.float32)


def _windows(geometry: ConvGeometry, output_shape: tuple[int, ...]) -> Iterator[Window]:
    """Yield for each tap, row-major, where the output positions lie in the padded input ``[images,H,W,..]``."""
    (kh, kw), (sh, sw) = geometry.kernel, geometry.stride
    rows, columns = output_shape[1:3]
    for ky, kx in product(range(kh), range(kw)):
        yield (
            slice(None),
            slice(ky, ky + (rows - 1) * sh + 1, sh),
            slice(kx, kx + (columns - 1) * sw + 1, sw),
        )


def _filled(rows: F32, count: int) -> F32:
    """Return ``rows`` ``[n, K]`` with rows of zeros up to ``count``."""
    return np.pad(rows, ((0, count - len(rows)), (0, 0)))


def _patterns(bits: Array, axis: int) -> npt.NDArray[np.int64]:
    """Return the numbers whose bit ``i`` is element ``i`` along ``axis``."""
    moved = np.moveaxis(bits, axis, -1).astype(np.int64)
    return np.asarray(moved @ (1 << np.arange(moved.shape[-1])), dtype=np.int64)


def _tap_inputs(x: Array, gu: F32, geometry: ConvGeometry) -> Array:
    """Return what each tap sees at the positions of ``gu``: ``[taps,T,N,OH,OW,C]``."""
    images, positions = _padded(x, geometry), _stepped(gu).shape[:4]
    taps = [images[window].reshape(*positions, x.shape[-1]) for window in _windows(geometry, _images(gu).shape)]
    return np.stack(taps)


def _blocks(positions: tuple[int, ...], block: Block) -> Iterator[tuple[slice, slice, slice, slice]]:
    """Yield the blocks of ``[T,N,H,W]``: samples outermost, then rows, columns and steps."""
    t, n, y, x = (
        [slice(first, first + size) for first in range(0, extent, size)]
        for extent, size in zip(positions, block, strict=True)
    )
    for samples, rows, columns, steps in product(n, y, x, t):
        yield steps, samples, rows, columns


def _block_of(x: Array, block: tuple[slice, slice, slice, slice], sizes: Block, axis: int) -> Array:
    """Return a block of ``x`` with its positions (at ``axis`` to ``axis + 3``) flat, ragged edges filled with zeros."""
    cut = x[(slice(None),) * axis + block]
    missing = [size - found for size, found in zip(sizes, cut.shape[axis : axis + 4], strict=True)]
    filled = np.pad(cut, [(0, 0)] * axis + [(0, m) for m in missing] + [(0, 0)] * (x.ndim - axis - 4))
    return filled.reshape(*x.shape[:axis], -1, *x.shape[axis + 4 :])
