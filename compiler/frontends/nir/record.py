"""One node of a graph: its fields, read with their types; every complaint names node and field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.errors import H2LearnError, Location

from .tree import Tree

Real = npt.NDArray[np.floating[Any]]

MAX_SIZE = 1 << 31


@dataclass(frozen=True)
class Record:
    """A node: its name (of nested graphs ``outer.inner``), its kind, and its fields as they are in the file."""

    name: str
    kind: str
    fields: Tree
    file: str

    @property
    def location(self) -> Location:
        """File and node."""
        return Location(f"{self.file}:{self.name}")

    def error(self, reason: str, field: str = "", hint: str = "") -> H2LearnError:
        """Return a complaint about the node or one of its fields."""
        what = f"node {self.name} ({self.kind})" + (f", field {field}" if field else "")
        return H2LearnError(f"{what}: {reason}", location=self.file, hint=hint)

    def has(self, field: str) -> bool:
        """Return whether the file has the field."""
        return field in self.fields

    def numbers(self, field: str) -> npt.NDArray[Any]:
        """Return a field as an array of real numbers of whatever type; raises H2LearnError."""
        value = self.fields.get(field)
        if value is None:
            raise self.error("expected numbers, found no such field", field)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
            found = "text" if isinstance(value, str) else "other values"
            raise self.error(f"expected numbers, found {found}", field)
        if value.size == 0:
            raise self.error(f"expected numbers, found an empty array of shape {list(value.shape)}", field)
        return value

    def real(self, field: str) -> Real:
        """Return a field as finite numbers in float32, or in float64 when the file has more; raises H2LearnError."""
        value = self.numbers(field)
        with np.errstate(over="ignore"):
            found = value if value.dtype == np.float32 else value.astype(np.float64)
            single = found.astype(np.float32)
        if not np.isfinite(single).all():
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(single))[0])
            raise self.error(f"expected finite float32 numbers, found {float(found[place])} at {list(place)}", field)
        return found

    def integers(self, field: str, low: int) -> tuple[int, ...]:
        """Return a field as integers of at least ``low``, flat; raises H2LearnError."""
        value = self.numbers(field).ravel()
        with np.errstate(invalid="ignore"):
            whole = value.astype(np.int64)
        if value.dtype.kind == "b" or not np.array_equal(whole.astype(np.float64), value.astype(np.float64)):
            raise self.error(f"expected integers, found {value[:4].tolist()}", field)
        if whole.min() < low or whole.max() > MAX_SIZE:
            raise self.error(f"expected integers from {low} to {MAX_SIZE}, found {whole[:4].tolist()}", field)
        return tuple(int(v) for v in whole)

    def integer(self, field: str, low: int) -> int:
        """Return a field as one integer; raises H2LearnError."""
        values = self.integers(field, low)
        if len(values) != 1:
            raise self.error(f"expected one integer, found {len(values)}", field)
        return values[0]

    def pair(self, field: str, low: int) -> tuple[int, int]:
        """Return a field as (rows, columns); one integer counts for both. Raises H2LearnError."""
        values = self.integers(field, low)
        if len(values) > 2:
            raise self.error(f"expected one or two integers, found {len(values)}", field)
        return values[0], values[-1]

    def shape(self, field: str) -> tuple[int, ...] | None:
        """Return a shape, or None when the file leaves it out; raises H2LearnError."""
        return self.integers(field, 1) if self.has(field) else None
