"""All operators that are understood."""

from __future__ import annotations

from .elementwise import ELEMENTWISE
from .executor import Executor
from .layers import LAYERS
from .loops import BODIES
from .reductions import REDUCTIONS
from .shapes import SHAPES
from .writes import WRITES


def new_executor(opset: int) -> Executor:
    """Return an executor of graphs of this version of ONNX's operators."""
    return Executor(opset, {**ELEMENTWISE, **LAYERS, **REDUCTIONS, **SHAPES, **WRITES}, BODIES)
