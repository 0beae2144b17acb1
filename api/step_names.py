"""Runs of a file that is a whole training step: its names for inputs and outputs, parameters among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.model import StepInterface

Array = npt.NDArray[np.generic]
Arrays = Mapping[str, npt.ArrayLike]

LABEL = "label"
"""What the program calls the target."""


@dataclass(frozen=True)
class Request:
    """One run in the program's names: what is fed, the parameters to set before, and the learning rate."""

    fed: dict[str, npt.ArrayLike]
    parameters: dict[str, npt.ArrayLike]
    lr: float | None


def read_step(note: Mapping[str, Any]) -> StepInterface | None:
    """Return the interface that a program's note holds, None for a program of another kind of file."""
    stored = note.get("step")
    return None if stored is None else StepInterface(**{**stored, "inputs": tuple(stored["inputs"])})


def translate(step: StepInterface, inputs: Arrays, lr: float | None) -> Request:
    """Return a run in the program's names; the label may also come under the program's name for it.

    Raises H2LearnError for a target that is not one-hot, and for two learning rates or none where it is an input.
    """
    fed = {name: value for name, value in inputs.items() if name not in (*step.parameters, step.target, step.rate)}
    parameters = {name: value for name, value in inputs.items() if name in step.parameters}
    if step.target in inputs:
        target = np.asarray(inputs[step.target])
        fed[LABEL] = classes_of(step.target, target) if step.one_hot else target
    if step.rate and step.rate in inputs:
        if lr is not None:
            raise H2LearnError(f"expected one learning rate, found lr and the input {step.rate!r}")
        lr = float(np.asarray(inputs[step.rate], dtype=np.float64).reshape(-1)[0])
    if step.rate and lr is None:
        raise H2LearnError(f"expected the learning rate among the inputs, found none named {step.rate!r}")
    return Request(fed, parameters, lr)


def classes_of(name: str, target: Array) -> npt.NDArray[np.int32]:
    """Return the classes of one-hot rows ``[N, K]``; raises H2LearnError for anything else."""
    rows = target.astype(np.float64) if target.dtype.kind in "fiub" else np.full((1, 1), np.nan)
    if rows.ndim != 2 or not np.isin(rows, (0.0, 1.0)).all() or not (rows.sum(axis=1) == 1).all():
        raise H2LearnError(
            f"expected one-hot rows [N, K] as {name!r}, found {target.dtype} {list(target.shape)}",
            hint="the loss of this step is computed for classes",
        )
    return np.asarray(rows.argmax(axis=1), dtype=np.int32)
