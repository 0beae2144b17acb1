"""What jobs work on: buffers by role, parameters by name, and the positions that a kernel sees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from h2learn.dialects import tile

F32 = npt.NDArray[np.float32]
Values = npt.NDArray[Any]
Buffers = dict[str, Values]
Params = dict[str, tile.Param]
ONE = np.float32(1)
ZERO = np.float32(0)
OUTSIDE = np.float32(np.nan)
"""A potential of which nothing is kept but that it lies outside the window."""


def integers(params: Params, *names: str) -> list[int]:
    """Return integer parameters."""
    return [int(params[name]) for name in names]


def real(params: Params, name: str) -> np.float32:
    """Return a binary32 parameter."""
    return np.float32(params[name])


def taps(params: Params) -> Iterator[tuple[int, int, int]]:
    """Yield (tap, ky, kx) row-major."""
    kh, kw = integers(params, "kh", "kw")
    for tap in range(kh * kw):
        yield tap, tap // kw, tap % kw


def input_tile(buffer: Values, params: Params, channels: str) -> Values:
    """Return an input tile as ``[imgs, rows, columns, c]``; ``channels`` is the parameter that counts them."""
    imgs, oh, ow, kh, kw, sh, sw, c = integers(params, "imgs", "oh", "ow", "kh", "kw", "sh", "sw", channels)
    return buffer.reshape(imgs, (oh - 1) * sh + kh, (ow - 1) * sw + kw, c)


def under_tap(inputs: Values, params: Params, ky: int, kx: int) -> Values:
    """Return the inputs under tap (ky, kx) of every position, ``[imgs, oh, ow, c]``."""
    oh, ow, sh, sw = integers(params, "oh", "ow", "sh", "sw")
    return inputs[:, ky : ky + (oh - 1) * sh + 1 : sh, kx : kx + (ow - 1) * sw + 1 : sw]


def sources(p: Params, tap_y: int, tap_x: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (y, x, gy, gx): result positions that tap (tap_y, tap_x) reaches, and the gradient position it reads."""
    oh, ow, sh, sw, gh, gw, py, px = integers(p, "oh", "ow", "sh", "sw", "gh", "gw", "py", "px")
    for y in range(oh):
        ny = y + py - tap_y
        if ny < 0 or ny % sh or ny // sh >= gh:
            continue
        for x in range(ow):
            nx = x + px - tap_x
            if nx >= 0 and nx % sw == 0 and nx // sw < gw:
                yield y, x, ny // sh, nx // sw
