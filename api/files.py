"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from h2learn.backends.h2learn.atomic_file import replace_file
from h2learn.backends.h2learn.errors import H2LearnError, why


def check_writable(path: str | Path) -> Path:
    """Return ``path`` after making sure that a file can be created there; raises H2LearnError otherwise.

    Called before long work, so that the work is not lost. Nothing is left behind.
    """
    target = Path(path)
    if target.is_dir():
        raise H2LearnError("expected a file name, found a folder", location=str(path))
    if target.exists() and not target.is_file():
        return target
    try:
        handle, probe = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise _unwritable(path, error) from error
    os.close(handle)
    os.unlink(probe)
    return target


def check_folder(path: str | Path) -> Path:
    """Create the folder ``path`` if needed and return it; raises H2LearnError when files cannot be created in it."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise _unwritable(path, error) from error


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Write ``content`` under a temporary name beside ``path`` and rename it; raises H2LearnError when that fails."""
    target = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    if target.exists() and not target.is_file():
        _write_through(target, data)
        return
    try:
        replace_file(target, data)
    except OSError as error:
        raise _unwritable(path, error) from error


def _write_through(target: Path, data: bytes) -> None:
    """Write to what is no regular file, such as ``/dev/stdout``, which cannot be renamed over."""
    try:
        target.write_bytes(data)
    except OSError as error:
        raise _unwritable(target, error) from error


def _unwritable(path: str | Path, error: OSError) -> H2LearnError:
    reason = why(error)
    return H2LearnError(f"cannot write here: {reason}", location=str(path))
