"""Event data: recordings as lists of (t, x, y, p), and their binning to frames.

Files (``.npz`` or HDF5) hold, for each half ``train`` and ``test`` (or without that prefix, for one half):
``train_x train_y train_p train_t`` (all events in a row; t in microseconds) or ``train_events`` (columns t, x, y, p);
``train_offset``, where the events of each recording start, and the end of the last one; ``train_label``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.errors import H2LearnError

from .files import read_arrays, stored_names

Integers = npt.NDArray[np.int64]
Frames = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]

HALVES = ("train", "test")
COLUMNS = ("t", "x", "y", "p")
SUFFIXES = (".npz", ".h5", ".hdf5")
BIN_RULES = ("time", "count")
CHUNK_ELEMENTS = 1 << 22
HINT = "an event file holds t x y p (or events [E, 4]), offset and label, with or without train_ and test_ before them"


@dataclass(frozen=True)
class Binning:
    """How events become frames.

    ``bins``: frames per recording. ``by``: ``"time"`` (frames of equal duration, from the first event to the last) or
    ``"count"`` (frames of equally many events). ``window_us``: with ``"time"``, the duration of a frame in microseconds
    instead; events after the last frame are left out. ``binary``: a pixel is 1 where any event was, else their number.
    Raises H2LearnError when a choice does not exist.
    """

    bins: int
    by: str = "time"
    window_us: float | None = None
    binary: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.bins, bool) or not isinstance(self.bins, int) or self.bins < 1:
            raise H2LearnError(f"expected a positive number of bins, found {self.bins!r}")
        if self.by not in BIN_RULES:
            raise H2LearnError(f"expected binning by {' or '.join(BIN_RULES)}, found {self.by!r}")
        if self.window_us is not None and (self.by != "time" or not self.window_us > 0):
            raise H2LearnError(f"expected a positive window with binning by time, found {self.window_us} by {self.by}")


@dataclass(frozen=True)
class Events:
    """Recordings: ``t`` (microseconds), ``x``, ``y``, ``p`` (0 or 1) of all events, sorted in time in each recording.

    Recording ``i`` holds the events ``offset[i]`` to ``offset[i + 1] - 1`` and has the class ``label[i]``.
    """

    t: Integers
    x: Integers
    y: Integers
    p: Integers
    offset: Integers
    label: Labels

    def __len__(self) -> int:
        return len(self.label)

    @property
    def counts(self) -> Integers:
        """The number of events of each recording."""
        return np.diff(self.offset)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns that hold all events."""
        return int(self.y.max(initial=-1)) + 1, int(self.x.max(initial=-1)) + 1

    @property
    def durations_us(self) -> Integers:
        """The time from the first to the last event of each recording (0 where there is none)."""
        spans = ((int(a), int(b)) for a, b in zip(self.offset[:-1], self.offset[1:], strict=True))
        return np.array([self.t[b - 1] - self.t[a] if b > a else 0 for a, b in spans], dtype=np.int64)

    def frames(self, binning: Binning, shape: tuple[int, int, int]) -> Frames:
        """Return frames ``[recordings, bins, polarities, rows, columns]``; with one polarity both are added up.

        Raises H2LearnError when an event lies outside of ``shape`` or there are other than 1 or 2 polarities.
        """
        polarities, rows, columns = shape
        if polarities not in (1, 2):
            raise H2LearnError(f"expected frames of 1 or 2 polarities, found {polarities}")
        if self.size[0] > rows or self.size[1] > columns:
            raise H2LearnError(f"the events fill {self.size[0]} x {self.size[1]} pixels, the frames {rows} x {columns}")
        each = binning.bins * polarities * rows * columns
        result = np.zeros((len(self), binning.bins, *shape), dtype=np.float32)
        flat = result.reshape(len(self), each)
        for first, last in _chunks(len(self), max(1, CHUNK_ELEMENTS // each)):
            low, high = int(self.offset[first]), int(self.offset[last])
            recording = np.repeat(np.arange(first, last), self.counts[first:last])
            bins = self._bins(binning, recording, low, high)
            p = self.p[low:high] if polarities == 2 else np.zeros(high - low, dtype=np.int64)
            place = ((bins * polarities + p) * rows + self.y[low:high]) * columns + self.x[low:high]
            kept = (bins >= 0) & (bins < binning.bins)
            index = ((recording - first) * each + place)[kept]
            flat[first:last] = np.bincount(index, minlength=(last - first) * each).reshape(last - first, each)
        return np.minimum(result, np.float32(1)) if binning.binary else result

    def _bins(self, binning: Binning, recording: Integers, low: int, high: int) -> Integers:
        """Return the frame of each event from ``low`` to ``high - 1``."""
        start, end = self.offset[recording], self.offset[recording + 1]
        if binning.by == "count":
            return np.asarray((np.arange(low, high) - start) * binning.bins // (end - start), dtype=np.int64)
        since = self.t[low:high] - self.t[start]
        if binning.window_us is not None:
            return np.asarray(since // binning.window_us, dtype=np.int64)
        return np.asarray(since * binning.bins // (self.t[end - 1] - self.t[start] + 1), dtype=np.int64)


def holds_events(path: str | Path) -> bool:
    """Return whether a file is one of events, by the names of its arrays; raises H2LearnError when it is unreadable."""
    names = stored_names(path)
    return any(f"{half}{key}" in names for half in ("", "train_", "test_") for key in ("t", "events"))


def load_events(path: str | Path) -> dict[str, Events]:
    """Return the recordings of an event file by half (``train``, ``test``, or ``all`` for a file with one half).

    Raises H2LearnError that names the file and the array for anything that cannot be used.
    """
    source = str(path)
    arrays = read_arrays(path)
    found = {}
    for half, prefix in (*((half, f"{half}_") for half in HALVES), ("all", "")):
        if f"{prefix}events" in arrays or f"{prefix}t" in arrays:
            found[half] = _events(source, arrays, prefix)
    if not found:
        raise H2LearnError("the file holds no events", location=source, hint=HINT)
    return found


def load_frames(
    path: str | Path, binning: Binning, shape: tuple[int, int, int] | None = None
) -> dict[str, tuple[Frames, Labels]]:
    """Return frames and labels of the halves ``train`` and ``test`` of an event file.

    ``shape``: polarities, rows and columns of a frame (default: 2, and what all events fit in).
    Raises H2LearnError as ``load_events`` does, and when a half is missing.
    """
    halves = load_events(path)
    missing = [half for half in HALVES if half not in halves]
    if missing:
        raise H2LearnError(f"the file holds no {missing[0]} recordings", location=str(path), hint=HINT)
    rows, columns = (max(events.size[axis] for events in halves.values()) for axis in (0, 1))
    chosen = shape or (2, rows, columns)
    try:
        return {half: (halves[half].frames(binning, chosen), halves[half].label) for half in HALVES}
    except H2LearnError as error:
        raise H2LearnError(error.message, location=str(path), hint=error.hint) from None


def _events(source: str, arrays: Mapping[str, npt.NDArray[np.generic]], prefix: str) -> Events:
    columns = {name: _integers(source, arrays, f"{prefix}{name}") for name in ("offset", "label")}
    if f"{prefix}events" in arrays:
        table = _integers(source, arrays, f"{prefix}events", (None, 4))
        columns |= dict(zip(COLUMNS, table.T, strict=True))
    else:
        columns |= {name: _integers(source, arrays, f"{prefix}{name}") for name in COLUMNS}
    count, offset, label = len(columns["t"]), columns["offset"], columns["label"]
    if any(len(columns[name]) != count for name in COLUMNS):
        raise H2LearnError(f"{prefix}t, {prefix}x, {prefix}y and {prefix}p differ in length", location=source)
    whole = len(offset) and offset[0] == 0 and offset[-1] == count and (np.diff(offset) >= 0).all()
    if len(offset) != len(label) + 1 or not whole or len(label) == 0:
        raise H2LearnError(
            f"expected {prefix}offset to rise from 0 to {count} in one step per label, found {len(offset)} offsets "
            f"for {len(label)} labels",
            location=source,
        )
    for name in ("x", "y", "label"):
        if count and not 0 <= columns[name].min() <= columns[name].max() < 1 << 16:
            raise H2LearnError(f"{prefix}{name} holds values outside of 0 to 65535", location=source)
    polarity = np.where(columns["p"] == -1, 0, columns["p"])
    if not np.isin(polarity, (0, 1)).all():
        raise H2LearnError(f"{prefix}p holds values other than 0 and 1 (or -1 and 1)", location=source)
    order = np.lexsort((columns["t"], np.repeat(np.arange(len(label)), np.diff(offset))))
    sorted_ = {name: columns[name][order] for name in ("t", "x", "y")}
    return Events(**sorted_, p=polarity[order], offset=offset, label=label.astype(np.int32))


def _integers(
    source: str, arrays: Mapping[str, npt.NDArray[np.generic]], key: str, shape: tuple[int | None, ...] = (None,)
) -> Integers:
    if key not in arrays:
        raise H2LearnError(f"the array {key!r} is missing", location=source, hint=HINT)
    array = arrays[key]
    fits = len(shape) == array.ndim and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    if array.dtype.kind not in "iub" or not fits:
        wanted = " x ".join("N" if n is None else str(n) for n in shape)
        raise H2LearnError(f"{key} must hold {wanted} integers, found {array.dtype} {array.shape}", location=source)
    if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise H2LearnError(f"{key} holds a number beyond 63 bits", location=source)
    return array.astype(np.int64)


def _chunks(count: int, size: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + size, count)) for first in range(0, count, size))
