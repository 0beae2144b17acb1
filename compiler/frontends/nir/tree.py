"""NIR files and graphs as nested dictionaries of arrays and text, whatever is wrong with their fields."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.errors import H2LearnError

from ..builder import MAX_PARAMETERS

Value: TypeAlias = "str | npt.NDArray[Any] | Mapping[str, Value]"
Tree: TypeAlias = Mapping[str, Value]

MAX_DEPTH = 32


def require(name: str) -> ModuleType:
    """Import ``nir`` or ``h5py``; raises H2LearnError that names the extra when it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise H2LearnError(
            f"NIR files need the Python package {name}, which cannot be imported: {error}",
            hint="pip install 'h2learn[nir]'",
        ) from error


def read_tree(path: str | Path) -> Tree:
    """Return the graph of a NIR file.

    Raises H2LearnError when the file is missing, is not HDF5, is damaged, or holds no graph.
    """
    where = str(path)
    if not Path(path).is_file():
        raise H2LearnError("no such file" if not Path(path).exists() else "expected a file", location=where)
    h5py = require("h5py")
    try:
        with h5py.File(path, "r") as file:
            if "node" not in file or not isinstance(file["node"], h5py.Group):
                raise H2LearnError("expected a NIR graph in group /node, found none", location=where)
            return _group(file["node"], "/node", where, 0)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise H2LearnError(
            f"expected an HDF5 file as nir writes it, found one that cannot be read: {reason}", location=where
        ) from error


def graph_tree(graph: object) -> Tree:
    """Return an in-memory ``nir.NIRGraph``; raises H2LearnError for anything else."""
    to_dict = getattr(graph, "to_dict", None)
    if to_dict is None:
        raise H2LearnError(f"expected a nir.NIRGraph, found {type(graph).__name__}")
    return _mapping(to_dict(), 0)


def _group(group: Any, name: str, where: str, depth: int) -> dict[str, Value]:
    if depth > MAX_DEPTH:
        raise H2LearnError(f"expected at most {MAX_DEPTH} nested graphs, found more in {name}", location=where)
    found: dict[str, Value] = {}
    for key, item in group.items():
        if key == "metadata" and "type" not in item:
            continue
        place = f"{name}/{key}"
        if hasattr(item, "items"):
            found[key] = _group(item, place, where, depth + 1)
            continue
        if not hasattr(item, "shape") or item.shape is None:
            raise H2LearnError(f"expected numbers or text in {place}, found nothing", location=where)
        if item.size > MAX_PARAMETERS:
            raise H2LearnError(
                f"expected at most {MAX_PARAMETERS} numbers in {place}, found {item.size}", location=where
            )
        try:
            found[key] = _leaf(item[()])
        except (OSError, ValueError, TypeError, UnicodeError) as error:
            raise H2LearnError(f"expected numbers or text in {place}: {error}", location=where) from error
    return found


def _mapping(values: Mapping[Any, Any], depth: int) -> dict[str, Value]:
    if depth > MAX_DEPTH:
        raise H2LearnError(f"expected at most {MAX_DEPTH} nested graphs, found more")
    found: dict[str, Value] = {}
    for key, value in values.items():
        if key in ("metadata", "input_type", "output_type") and isinstance(value, Mapping) and "type" not in value:
            continue
        if isinstance(value, Mapping):
            found[str(key)] = _mapping(value, depth + 1)
        elif value is not None:
            found[str(key)] = _leaf(value)
    return found


def _leaf(value: object) -> str | npt.NDArray[Any]:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype.kind in "OSU":
        return np.array([_text(item) for item in array.ravel().tolist()], dtype=np.str_).reshape(array.shape)
    return array


def _text(item: object) -> str:
    return item.decode("utf-8") if isinstance(item, bytes) else str(item)
