"""Convolution, fully connected layer and bias, and their adjoints.

Maps are ``[...,H,W,C]`` with any leading dimensions, features ``[...,C]``; convolution weights are ``[kh,kw,C,K]``.
A convolution is one matrix product per kernel tap; inputs have been converted to the real type of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .arrays import Real


def conv(x: Real, weight: Real, stride: Sequence[int], padding: Sequence[int]) -> Real:
    """Return the cross-correlation ``[...,OH,OW,K]`` of maps ``x`` ``[...,H,W,C]``."""
    images = _images(x)
    kh, kw, _, k = weight.shape
    rows = (images.shape[1] + 2 * padding[0] - kh) // stride[0] + 1
    columns = (images.shape[2] + 2 * padding[1] - kw) // stride[1] + 1
    padded = _pad(images, padding)
    result = np.zeros((len(images), rows, columns, k), dtype=weight.dtype)
    for ky, kx, window in _taps(padded, (kh, kw), stride, (rows, columns)):
        result += window @ weight[ky, kx]
    return result.reshape(*x.shape[:-3], rows, columns, k)


def conv_input_gradient(
    gradient: Real, weight: Real, stride: Sequence[int], padding: Sequence[int], shape: Sequence[int]
) -> Real:
    """Return the gradient of maps of ``shape`` (H, W, C) from that of the result ``[...,OH,OW,K]``."""
    images = _images(gradient)
    height, width, channels = shape
    padded = np.zeros((len(images), height + 2 * padding[0], width + 2 * padding[1], channels), dtype=weight.dtype)
    for ky, kx, window in _taps(padded, weight.shape[:2], stride, images.shape[1:3]):
        window += images @ weight[ky, kx].T
    inner = padded[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width]
    return np.ascontiguousarray(inner).reshape(*gradient.shape[:-3], *shape)


def conv_weight_gradient(
    x: Real, gradient: Real, stride: Sequence[int], padding: Sequence[int], kernel: Sequence[int]
) -> Real:
    """Return the gradient ``[kh,kw,C,K]`` of the weights, summed over all leading dimensions."""
    padded, images = _pad(_images(x), padding), _images(gradient)
    flat = images.reshape(-1, images.shape[-1])
    result = np.zeros((*kernel, x.shape[-1], images.shape[-1]), dtype=gradient.dtype)
    for ky, kx, window in _taps(padded, kernel, stride, images.shape[1:3]):
        result[ky, kx] = window.reshape(-1, x.shape[-1]).T @ flat
    return result


def embed(weight: Real, dilation: Sequence[int], groups: int) -> Real:
    """Return grouped or dilated weights ``[kh,kw,C/groups,K]`` as those of a plain convolution, zeros in between."""
    kh, kw, inner, k = weight.shape
    size = [(count - 1) * step + 1 for count, step in zip((kh, kw), dilation, strict=True)]
    result = np.zeros((*size, inner * groups, k), dtype=weight.dtype)
    for group, outputs in _groups(k, groups):
        channels = slice(group * inner, (group + 1) * inner)
        result[:: dilation[0], :: dilation[1], channels, outputs] = weight[..., outputs]
    return result


def extract(gradient: Real, dilation: Sequence[int], groups: int) -> Real:
    """Return what :func:`embed` has put into plain weights: the gradient of grouped or dilated weights."""
    kept = gradient[:: dilation[0], :: dilation[1]]
    *kernel, channels, k = kept.shape
    inner = channels // groups
    result = np.empty((*kernel, inner, k), dtype=gradient.dtype)
    for group, outputs in _groups(k, groups):
        result[..., outputs] = kept[:, :, group * inner : (group + 1) * inner, outputs]
    return result


def _groups(k: int, groups: int) -> Iterator[tuple[int, slice]]:
    """Yield each group with its output channels."""
    size = k // groups
    return ((group, slice(group * size, (group + 1) * size)) for group in range(groups))


def linear(x: Real, weight: Real) -> Real:
    """Return features ``[...,K]`` of ``x`` ``[...,C]`` and weights ``[C,K]``."""
    return x @ weight


def linear_input_gradient(gradient: Real, weight: Real) -> Real:
    """Return the gradient ``[...,C]`` of the input."""
    return gradient @ weight.T


def linear_weight_gradient(x: Real, gradient: Real) -> Real:
    """Return the gradient ``[C,K]`` of the weights, summed over all leading dimensions."""
    return x.reshape(-1, x.shape[-1]).T @ gradient.reshape(-1, gradient.shape[-1])


def bias_gradient(gradient: Real) -> Real:
    """Return the sum of ``gradient`` ``[...,K]`` over all leading dimensions."""
    return np.asarray(gradient.reshape(-1, gradient.shape[-1]).sum(axis=0))


def _images(x: Real) -> Real:
    return x.reshape(-1, *x.shape[-3:])


def _pad(images: Real, padding: Sequence[int]) -> Real:
    if not any(padding):
        return images
    rows, columns = padding
    return np.pad(images, ((0, 0), (rows, rows), (columns, columns), (0, 0)))


def _taps(
    padded: Real, kernel: Sequence[int], stride: Sequence[int], shape: Sequence[int]
) -> Iterator[tuple[int, int, Real]]:
    """Yield each tap with the view of ``padded`` that it meets at the ``shape`` (rows, columns) of positions."""
    for ky in range(kernel[0]):
        rows = slice(ky, ky + (shape[0] - 1) * stride[0] + 1, stride[0])
        for kx in range(kernel[1]):
            columns = slice(kx, kx + (shape[1] - 1) * stride[1] + 1, stride[1])
            yield ky, kx, padded[:, rows, columns]
