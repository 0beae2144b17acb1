"""What the baseline must know about a network: the shapes of its layers, read from a ``spike`` module."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from xdsl.dialects import builtin
from xdsl.ir import Block, Operation, SSAValue

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.dialects.common import get_io
from h2learn.dialects.spike.base import tensor_type
from h2learn.dialects.spike.interpreter import main_block
from h2learn.dialects.spike.ops import parameter_of

SYNAPSE, NEURON, POOL, ELEMENTWISE = "synapse", "neuron", "pool", "elementwise"
_KINDS = {
    "spike.conv": SYNAPSE,
    "spike.linear": SYNAPSE,
    "spike.lif": NEURON,
    "spike.li": NEURON,
    "spike.pool": POOL,
}
_RANK_OUTSIDE_TIME = {"spike.conv": 4, "spike.linear": 2, "spike.pool": 4}
_FREE = {"spike.flatten", "spike.encode", "spike.repeat", "spike.embed"}
"""Views on a GPU: nothing is computed or copied (a repeated input is broadcast)."""


@dataclass(frozen=True)
class LayerShape:
    """One layer over all samples and time steps.

    ``steps``: kernel calls of a framework that goes step by step (1: the layer stands outside time). ``inputs`` and
    ``outputs``: elements, ``macs``: multiply-accumulates, of the whole batch at all steps; ``weights``: parameters,
    bias included; ``input_gradient``: training needs the gradient with respect to its input.
    """

    name: str
    kind: str
    steps: int
    inputs: int
    outputs: int
    macs: int = 0
    weights: int = 0
    input_gradient: bool = True


def layers_of(module: builtin.ModuleOp) -> list[LayerShape]:
    """Return the layers of a model's ``spike`` module (``model.module``), in order.

    Raises H2LearnError when the module holds anything but ``spike`` ops before training.
    """
    block = main_block(module)
    parameters: dict[SSAValue, str] = dict(zip(block.args, (e.name for e in get_io(module)), strict=False))
    steps = _time_steps(block)
    trained: set[SSAValue] = set()
    found: list[LayerShape] = []
    counts: dict[str, int] = {}
    for op in block.ops:
        if op.name == "func.return":
            continue
        if not op.name.startswith("spike.") or not op.results:
            raise H2LearnError(f"expected a model of spike operations, found {op.name}")
        needs_gradient = any(operand in trained for operand in op.operands)
        kind = _KINDS.get(op.name, ELEMENTWISE)
        if needs_gradient or kind == SYNAPSE:
            trained.update(op.results)
        if op.name in _FREE:
            continue
        short = op.name.removeprefix("spike.")
        counts[short] = counts.get(short, 0) + 1
        name = parameters[parameter_of(op.operands[1])].rpartition(".")[0] if kind == SYNAPSE else ""
        found.append(_layer(op, kind, name or f"{short} {counts[short]}", steps, needs_gradient))
    return found


def _layer(op: Operation, kind: str, name: str, steps: int, needs_gradient: bool) -> LayerShape:
    inputs, outputs = prod(_shape(op.operands[0])), prod(_shape(op.results[0]))
    macs = weights = 0
    if kind == SYNAPSE:
        weight = _shape(parameter_of(op.operands[1]))
        macs = outputs * prod(weight[:-1])
        weights = prod(weight) + sum(prod(_shape(bias)) for bias in op.operands[2:])
    calls = 1 if len(_shape(op.results[0])) == _RANK_OUTSIDE_TIME.get(op.name) else steps
    return LayerShape(name, kind, calls, inputs, outputs, macs, weights, needs_gradient)


def _time_steps(block: Block) -> int:
    return next((_shape(op.results[0])[0] for op in block.ops if _KINDS.get(op.name) == NEURON), 1)


def _shape(value: SSAValue) -> tuple[int, ...]:
    return tuple(tensor_type(value.type).get_shape())
