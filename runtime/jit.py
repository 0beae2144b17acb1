"""The one way in which this project compiles kernels with Numba."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numba

Kernel = Callable[..., Any]
"""A compiled function: its argument types are checked by Numba when it is called."""


def forget_stale(sources: Iterable[Path], folder: Path) -> None:
    """Delete the compiled kernels under ``folder`` that are older than the newest of the ``sources``.

    Numba compiles a kernel again when its own file has changed, not when another one has that it calls or takes
    constants from, and the old code would give other numbers without a word.
    """
    newest = max(source.stat().st_mtime_ns for source in sources)
    with suppress(OSError):  # a folder that is not writable keeps what it has
        for index in folder.rglob("*.nbi"):
            if index.stat().st_mtime_ns < newest:
                index.unlink(missing_ok=True)


def jit(function: Callable[..., object]) -> Kernel:
    """Compile ``function`` on its first call: strict IEEE arithmetic, no GIL, cached on disk where that is possible."""
    return _compiled(function)


def inlined(function: Callable[..., object]) -> Kernel:
    """The same for a function that only compiled code calls, and that becomes a part of each of its callers.

    LLVM would keep a function of many arrays as it is, and each call of it would then write them to the stack, word by
    word. A function with many callers makes the compilation longer.
    """
    return _compiled(function, forceinline=True, no_cpython_wrapper=True)


def _compiled(function: Callable[..., object], **more: Any) -> Kernel:
    # nobody passes kernels to kernels, which is what the wrapper that is left out is for
    options: dict[str, Any] = {"nogil": True, "fastmath": False, "error_model": "numpy", "no_cfunc_wrapper": True}
    options |= more
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError as error:
        if "cache" not in str(error):
            raise
        warnings.warn(
            "compiled kernels are not kept: neither the package folder nor the user's cache folder is writable,"
            " so every start compiles them again; set NUMBA_CACHE_DIR to a writable folder",
            RuntimeWarning,
            stacklevel=3,
        )
        compiled = numba.njit(**options)(function)
    return cast(Kernel, compiled)


def is_kept(kernel: Kernel) -> bool:
    """Whether compiled code of ``kernel`` lies on disk, so that its first call need not compile it."""
    folder = kernel.stats.cache_path  # type: ignore[attr-defined]
    return folder is not None and any(Path(folder).glob(f"*.{kernel.__name__}-*.nbi"))


_HERE = Path(__file__).parent
_COMPILED = ("events.py", "native.py", "prepared.py", "team.py", "frontend.py", "jit.py")
forget_stale(
    [
        *(_HERE / "kernels").glob("*.py"),
        *(_HERE / name for name in _COMPILED),
        _HERE.parent / "backends/h2learn/isa.py",
    ],
    _HERE,
)
