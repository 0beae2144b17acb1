"""PyTorch modules in, trained weights back out (extra ``torch``)."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import onnx

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.frontends.onnx import load_onnx
from h2learn.compiler.model import Model
from h2learn.optional import require_torch

if TYPE_CHECKING:
    from torch import Tensor, nn

OPSET = 17
PREFIX = "module."


def from_torch(module: nn.Module, example: Tensor, T: int | None = None, **options: Any) -> Model:
    """Return the model of a spiking PyTorch module; parameters keep the names of its ``state_dict``.

    ``example``: an input of the right shape; its batch becomes the model's. Without ``T`` the module is called once, as
    it is: its own loop says how time runs. With ``T`` the module may be a single time step that keeps its state (as in
    snnTorch with ``init_hidden`` or single-step SpikingJelly; ``reset`` or ``reset_mem`` of its parts are called
    before the first step): it is called once per time step, on ``example[t]`` where the first dimension of
    ``example`` is ``T``, else on ``example`` every time. A module whose result for a step depends on other steps of
    ``example`` has its own loop and is called once. Of several results the first one counts.
    The module is exported in evaluation mode by the exporter that PyTorch brings, and left in the mode it was in.
    ``options`` are those of :func:`h2learn.load_model` for ONNX files.
    Raises H2LearnError when PyTorch is missing, the module cannot be exported, or ``load_model`` refuses it.
    """
    torch = require_torch()
    if T is not None and (isinstance(T, bool) or not isinstance(T, int) or T < 1):
        raise H2LearnError(f"expected a positive number of time steps, found {T!r}")
    name = type(module).__name__
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            steps = 1 if T is None or _has_own_loop(torch, module, example, T) else T
            wrapped = _over_time(torch, module, None if steps == 1 and T != 1 else steps)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"{name}.onnx"
                _export(torch, wrapped, example, file)
                return load_onnx(file, **options)
    finally:
        _reset(module)
        module.train(training)


def _over_time(torch: ModuleType, module: nn.Module, steps: int | None) -> nn.Module:
    """Return a module that runs ``module`` from its initial state: ``steps`` times, or once with its own loop."""

    class OverTime(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Tensor) -> Tensor:
            _reset(self.module)
            if steps is None:
                return _first(torch, self.module(x))
            sequence = x.dim() > 2 and x.shape[0] == steps
            results = [_first(torch, self.module(x[t] if sequence else x)) for t in range(steps)]
            stacked: Tensor = torch.stack(results)
            return stacked

    return OverTime()


def _first(torch: ModuleType, result: object) -> Tensor:
    found: Any = result
    while isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, torch.Tensor):
        raise H2LearnError(f"expected a module that gives a tensor, found {type(found).__name__}")
    tensor: Tensor = found
    return tensor


def _reset(module: nn.Module) -> None:
    """Put the parts of a module that keep a state back to the initial one."""
    for part in module.modules():
        for name in ("reset", "reset_mem"):
            function = getattr(part, name, None)
            if callable(function):
                function()
                break


def _has_own_loop(torch: ModuleType, module: nn.Module, example: Tensor, steps: int) -> bool:
    """Return whether a step's result depends on another step of the input, or there is one result for all steps."""
    if example.dim() < 3 or example.shape[0] != steps:
        return False
    try:
        generator = torch.Generator().manual_seed(0)
        for scale in (1.0, 4.0, 16.0):
            x = torch.rand(example.shape, generator=generator) * scale
            results = []
            for factor in (1.0, -1.0):
                changed = x.clone()
                changed[0] *= factor
                _reset(module)
                results.append(_first(torch, module(changed)))
            if results[0].shape[:1] != (steps,) or not torch.equal(results[0][1:], results[1][1:]):
                return True
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False  # it does not take whole sequences
    return False


def _export(torch: ModuleType, module: nn.Module, example: Tensor, file: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (example,),
                str(file),
                dynamo=False,
                opset_version=OPSET,
                do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,
                input_names=["input"],
                output_names=["output"],
            )
    except H2LearnError:
        raise
    except Exception as error:  # the exporter raises many types
        raise H2LearnError(
            f"PyTorch cannot export the module: {str(error).strip().partition(chr(10))[0] or type(error).__name__}"
        ) from error
    model = onnx.load(str(file))
    _strip(model.graph)
    onnx.save(model, str(file))


def _strip(graph: onnx.GraphProto) -> None:
    """Give the parameters the names they have in the wrapped module."""
    for tensor in graph.initializer:
        tensor.name = tensor.name.removeprefix(PREFIX)
    for node in graph.node:
        node.input[:] = [name.removeprefix(PREFIX) for name in node.input]
