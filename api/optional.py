"""Packages that only some jobs need."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from h2learn.backends.h2learn.errors import H2LearnError


def require_torch() -> ModuleType:
    """Import PyTorch; raises H2LearnError that names the extra when it is not installed."""
    try:
        return import_module("torch")
    except ImportError as error:
        raise H2LearnError(f"PyTorch cannot be imported: {error}", hint="pip install 'h2learn[torch]'") from None
