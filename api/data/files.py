"""Arrays by name from ``.npz`` and HDF5 files."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.errors import H2LearnError

Array = npt.NDArray[np.generic]

HDF5_SUFFIXES = (".h5", ".hdf5")
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OSError, KeyError),
    *(NotImplementedError, RuntimeError, MemoryError, SyntaxError),
)


def stored_names(path: str | Path) -> tuple[str, ...]:
    """Return the names of the arrays of a file; raises H2LearnError when it cannot be read."""
    return tuple(_read(path, ()))


def read_arrays(path: str | Path, names: Sequence[str] | None = None) -> dict[str, Array]:
    """Return the arrays of a file by name (None: all; a name that the file does not hold is left out).

    Raises H2LearnError that names the file, and the array if one cannot be read.
    """
    return {name: array for name, array in _read(path, names).items() if array is not None}


def _read(path: str | Path, names: Sequence[str] | None) -> dict[str, Array | None]:
    """Return what a file holds; arrays that are not asked for are None."""
    source = str(path)
    try:
        if Path(path).suffix.lower() in HDF5_SUFFIXES:
            return _read_hdf5(source, names)
        archive = np.load(source, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise H2LearnError("expected an .npz archive, found a single array", location=source)
        with archive:
            return {n: _one(source, archive, n) if names is None or n in names else None for n in archive.files}
    except FileNotFoundError as error:
        raise H2LearnError("no such file", location=source) from error
    except _UNREADABLE as error:
        raise H2LearnError(
            f"the file cannot be read: {_detail(error)}",
            location=source,
            hint="the file is damaged, incomplete, or not an .npz archive of plain arrays",
        ) from error


def _read_hdf5(source: str, names: Sequence[str] | None) -> dict[str, Array | None]:
    try:
        h5py = import_module("h5py")
    except ImportError:
        raise H2LearnError(
            "HDF5 files need the Python package h5py", location=source, hint="pip install 'h2learn[nir]'"
        ) from None
    with h5py.File(source, "r") as file:
        found = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
        return {n: np.asarray(item[()]) if names is None or n in names else None for n, item in found.items()}


def _one(source: str, archive: np.lib.npyio.NpzFile, name: str) -> Array:
    try:
        return np.asarray(archive[name])
    except _UNREADABLE as error:
        raise H2LearnError(
            f"the array {name!r} cannot be read: {_detail(error)}",
            location=source,
            hint="the file is damaged, incomplete, or not an .npz archive of plain arrays",
        ) from error


def _detail(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
