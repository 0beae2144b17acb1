"""Reading model files, one front end per kind of file; what is asked for beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.autodiff.spec import Train
from h2learn.compiler.mapping.limits import TileLimits
from h2learn.compiler.model import Model
from h2learn.compiler.pipeline import load_object

FRONT_ENDS: dict[str, tuple[str, tuple[str, ...]]] = {
    ".onnx": ("h2learn.compiler.frontends.onnx:load_onnx", ("time_steps", "reset", "neurons")),
    ".snn": ("h2learn.compiler.frontends.dsl:load_snn", ()),
    ".nir": (
        "h2learn.compiler.frontends.nir:load_nir",
        ("time_steps", "dt", "discretisation", "reset", "producer", "encode", "max_spikes"),
    ),
}
"""File name suffix -> the reader, and the options it takes."""


def load_model(path: str | Path, **options: Any) -> Model:
    """Read a model file; the front end follows from its suffix.

    Raises H2LearnError (with file, line and column where there are any) when the file cannot be read or used, or an
    option does not exist for this kind of file.
    """
    if not isinstance(path, str | Path):
        raise H2LearnError(f"expected the path of a model file, found {type(path).__name__}")
    suffix = Path(path).suffix.lower()
    if suffix not in FRONT_ENDS:
        raise H2LearnError(
            f"no front end reads {suffix or 'a file without suffix'}",
            location=str(path),
            hint=f"known suffixes: {', '.join(sorted(FRONT_ENDS))}",
        )
    target, known = FRONT_ENDS[suffix]
    for name in options:
        if name not in known:
            raise H2LearnError(
                f"a {suffix} file has no option {name!r}",
                location=str(path),
                hint=f"known options: {', '.join(known) or 'none'}",
            )
    reader = load_object(target)
    assert callable(reader)
    model = reader(path, **options)
    assert isinstance(model, Model)
    return model


def recipe_of(model: Model, train: Train | str | None) -> Train | None:
    """Return the recipe to compile with: as given, or the model file's with the named method.

    Without either it is None (inference), or the file's own for a file that is a whole training step.
    """
    if train is None:
        return model.train if model.step is not None else None
    if isinstance(train, Train):
        return train
    if not isinstance(train, str):
        raise H2LearnError(f"expected a training recipe or the name of a method, found {type(train).__name__}")
    return replace(model.train or Train(), method=train)


def limits_text(mapping: str | Mapping[str, int] | TileLimits | None) -> str:
    """Return tile limits as text in a fixed order; raises H2LearnError for unknown names and values below 1."""
    if mapping is None:
        return ""
    if isinstance(mapping, Mapping):
        mapping = ",".join(f"{name}={value}" for name, value in mapping.items())
    if isinstance(mapping, str):
        mapping = TileLimits.parse(mapping)
    if not isinstance(mapping, TileLimits):
        raise H2LearnError(f"expected tile limits, found {type(mapping).__name__}", hint="for example 'rows=4,k=8'")
    return str(mapping)
