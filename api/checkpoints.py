"""Checkpoints: parameters, optimizer state and where training stands, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from h2learn.backends.h2learn.errors import H2LearnError, why
from h2learn.files import write_atomic

Tensors = Mapping[str, npt.NDArray[np.float32]]

FORMAT = 1
_PARAMETER, _STATE = "parameter/", "state/"


@dataclass
class Progress:
    """Where training stands: the next batch of an epoch (both from 0), and the sums over the epoch so far."""

    epoch: int = 0
    batch: int = 0
    steps: int = 0
    samples: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    cycles: int = 0
    energy_pj: float = 0.0
    instructions: int = 0
    finished: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def start_next_epoch(self) -> None:
        """Go to the first batch of the next epoch and clear the sums."""
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum, self.correct, self.seen = 0.0, 0, 0
        self.cycles, self.energy_pj, self.instructions = 0, 0.0, 0


@dataclass(frozen=True)
class Checkpoint:
    """``run`` describes what is trained how (model, machine, recipe, data, seed): resuming needs the same."""

    run: Mapping[str, Any]
    progress: Progress
    parameters: Tensors
    states: Tensors


def write_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write atomically; raises H2LearnError when that is not possible."""
    tensors = {f"{_PARAMETER}{name}": np.ascontiguousarray(v) for name, v in sorted(checkpoint.parameters.items())}
    tensors |= {f"{_STATE}{name}": np.ascontiguousarray(v) for name, v in sorted(checkpoint.states.items())}
    metadata = {
        "h2learn.checkpoint": str(FORMAT),
        "run": json.dumps(dict(checkpoint.run), sort_keys=True),
        "progress": json.dumps(asdict(checkpoint.progress), sort_keys=True),
    }
    write_atomic(path, save_tensors(tensors, metadata))


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint; raises H2LearnError when the file is missing, damaged or no checkpoint of ours."""
    content = _content(path)
    try:
        tensors = load_tensors(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise H2LearnError(f"the checkpoint cannot be read: {error}", location=str(path)) from error
    if metadata.get("h2learn.checkpoint") != str(FORMAT):
        raise H2LearnError("the file is no training checkpoint of this version", location=str(path))
    try:
        run, progress = json.loads(metadata["run"]), Progress(**json.loads(metadata["progress"]))
    except (ValueError, KeyError, TypeError) as error:
        raise H2LearnError(f"the checkpoint's description is damaged: {error}", location=str(path)) from error
    return Checkpoint(run, progress, _named(tensors, _PARAMETER), _named(tensors, _STATE))


def read_parameters(path: str | Path) -> dict[str, npt.NDArray[np.float32]]:
    """Return the parameters of a safetensors file: a checkpoint of ours, or plain tensors by their names."""
    try:
        tensors = load_tensors(_content(path))
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise H2LearnError(f"the parameters cannot be read: {error}", location=str(path)) from error
    return _named(tensors, _PARAMETER) if any(name.startswith(_PARAMETER) for name in tensors) else tensors


def write_parameters(path: str | Path, parameters: Tensors) -> None:
    """Write parameters by name as a safetensors file, atomically; raises H2LearnError when that is not possible."""
    write_atomic(path, save_tensors({name: np.ascontiguousarray(v) for name, v in sorted(parameters.items())}))


def check_same_run(path: str | Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise H2LearnError that names the first thing in which the checkpoint's run differs from the wanted one."""
    for key, value in wanted.items():
        other = found.get(key)
        if other != value:
            raise H2LearnError(
                f"the checkpoint is of another {key.replace('_', ' ')}: it has {other!r}, this run {value!r}",
                location=str(path),
                hint="continue with the same settings, or train to another checkpoint file",
            )


def _content(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise H2LearnError("no such file", location=str(path)) from error
    except OSError as error:
        raise H2LearnError(why(error), location=str(path)) from error


def _named(tensors: Mapping[str, npt.NDArray[np.float32]], prefix: str) -> dict[str, npt.NDArray[np.float32]]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
