"""One dispatched instruction, as its meaning sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.dialects.h2.layouts import F32, Place, read_real

Ints = npt.NDArray[np.int64]
Value = int | np.float32 | str
Window = tuple[slice, npt.NDArray[np.int64], npt.NDArray[np.int64]]
ZERO = np.float32(0)
ONE = np.float32(1)


@dataclass(frozen=True, slots=True)
class Job:
    """One dispatched instruction: places of its operands, the values of its coordinates, its descriptor, ``init``."""

    places: dict[str, Place]
    descriptor: dict[str, Value]
    words: dict[str, str]
    init: bool

    def __getitem__(self, operand: str) -> Place:
        """Return the place of an address operand."""
        return self.places[operand]

    def coordinate(self, operand: str) -> int:
        """Return the value of an address operand that is a coordinate."""
        return self.places[operand].address

    def size(self, *names: str) -> tuple[int, ...]:
        """Return integer descriptor fields."""
        return tuple(self.integer(name) for name in names)

    def integer(self, name: str) -> int:
        """Return an integer descriptor field."""
        value = self.descriptor[name]
        assert isinstance(value, int)
        return value

    def real(self, name: str) -> np.float32:
        """Return a binary32 descriptor field."""
        value = self.descriptor[name]
        assert isinstance(value, np.float32)
        return value

    def word(self, name: str) -> str:
        """Return an enumerated descriptor field by its name."""
        value = self.descriptor[name]
        assert isinstance(value, str)
        return value

    @property
    def taps(self) -> list[tuple[int, int]]:
        """Kernel rows and columns, row-major."""
        return list(product(range(self.integer("kh")), range(self.integer("kw"))))

    @property
    def groups(self) -> int:
        """Channel groups of a look-up table."""
        if not self.integer("fan"):
            raise H2LearnError("a look-up table needs a fan-in of at least 1")
        return -(-self.integer("c") // self.integer("fan"))

    @property
    def input_rows(self) -> int:
        """Rows of an input tile."""
        return (self.integer("oh") - 1) * self.integer("sh") + self.integer("kh")

    @property
    def input_columns(self) -> int:
        """Columns of an input tile."""
        return (self.integer("ow") - 1) * self.integer("sw") + self.integer("kw")

    def window(self, tile: npt.NDArray[np.generic], ky: int, kx: int) -> npt.NDArray[np.generic]:
        """Return what tap ``(ky, kx)`` sees of an input tile ``[img][row][col]...`` at every position."""
        oh, ow, sh, sw = self.size("oh", "ow", "sh", "sw")
        rows, columns = ky + sh * np.arange(oh), kx + sw * np.arange(ow)
        return tile[:, rows[:, None], columns[None, :]]

    def sums(self, operand: str, shape: tuple[int, ...]) -> F32:
        """Return the binary32 sums to start from: zeros on init, else from memory."""
        return np.zeros(shape, dtype=np.float32) if self.init else read_real(self[operand], shape, "f32")


def transposed_taps(job: Job) -> Iterator[tuple[int, tuple[Window, Window]]]:
    """Yield, for each tap, the positions it contributes to and where their contributions come from."""
    oh, ow, gh, gw, py, px, sh, sw = job.size("oh", "ow", "gh", "gw", "py", "px", "sh", "sw")
    for tap, (ky, kx) in enumerate(job.taps):
        rows, from_rows = _sources(oh, py - ky, sh, gh)
        columns, from_columns = _sources(ow, px - kx, sw, gw)
        if rows.size and columns.size:
            to = (slice(None), rows[:, None], columns[None, :])
            yield tap, (to, (slice(None), from_rows[:, None], from_columns[None, :]))


def _sources(count: int, offset: int, stride: int, limit: int) -> tuple[Ints, Ints]:
    """Return the positions in ``range(count)`` that one tap reaches, and the gradient positions they come from."""
    shifted = np.arange(count) + offset
    legal = (shifted >= 0) & (shifted % stride == 0) & (shifted // stride < limit)
    return np.flatnonzero(legal), shifted[legal] // stride
