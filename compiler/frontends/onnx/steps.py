"""The network unrolled: one graph of per-step tensors ``[N, ...]``, equal computations shared.

Whatever form time has in the file — steps one after another, layers one after another with time in the batch, loops —
execution brings it to this form; :mod:`roll` brings time back as one dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .graph import Constant

Shape = tuple[int, ...]
Key = tuple[object, ...]

_ARITHMETIC = "const add sub mul div neg where relu max min abs round floor ceil trunc"
POINTWISE = frozenset(f"{_ARITHMETIC} gt ge eq not and or ne other".split())
"""Operators that work element by element; the others are layers, inputs and readouts."""


@dataclass(frozen=True)
class Synapse:
    """The parameters of a ``linear``, ``conv`` or ``batchnorm`` node; ``statistics``: running mean and variance."""

    weight: Constant
    bias: Constant | None = None
    inputs_first: bool = False
    statistics: tuple[Constant, Constant] | None = None


@dataclass(eq=False)
class StepNode:
    """A tensor of one time step, or a constant; ``source`` names the ONNX node and its operator."""

    number: int
    op: str
    args: tuple[StepNode, ...]
    key: Key
    shape: Shape
    source: str
    scope: str = ""
    value: npt.NDArray[np.float64] | None = None
    synapse: Synapse | None = None

    @property
    def pointwise(self) -> bool:
        """Whether each element depends on the same element of the arguments only."""
        return self.op in POINTWISE

    @property
    def scalar(self) -> float | None:
        """The value of a constant of one element."""
        return float(self.value.reshape(())) if self.value is not None and self.value.size == 1 else None


@dataclass
class Steps:
    """Makes nodes; asking for the same computation again gives the same node."""

    limit: int = 2_000_000
    unfolded: list[tuple[int, int]] = field(default_factory=list)
    """What reshapes make two dimensions of the first one of a tensor without time; -1 is the size that is left over."""
    _known: dict[tuple[object, ...], StepNode] = field(default_factory=dict)

    def node(
        self,
        op: str,
        args: Sequence[StepNode],
        shape: Shape,
        source: str,
        *,
        key: Key = (),
        scope: str = "",
        value: npt.NDArray[np.float64] | None = None,
        synapse: Synapse | None = None,
    ) -> StepNode:
        """Return the node of this computation."""
        identity = (op, key, shape, *(a.number for a in args))
        found = self._known.get(identity)
        if found is None:
            if len(self._known) >= self.limit:
                raise ValueError(f"expected at most {self.limit} operations over all time steps")
            found = StepNode(len(self._known), op, tuple(args), key, shape, source, scope, value, synapse)
            self._known[identity] = found
        return found

    def constant(self, constant: Constant, source: str) -> StepNode:
        """Return a constant; one value everywhere becomes a scalar."""
        uniform = constant.uniform
        if uniform is not None:
            return self.scalar(uniform, source)
        if constant.array.dtype.kind not in "biuf":
            raise ValueError("expected numbers as constant")
        value = constant.array.astype(np.float64)
        return self.node("const", (), constant.shape, source, key=(constant.digest,), value=value)

    def scalar(self, value: float, source: str) -> StepNode:
        """Return one number."""
        return self.node("const", (), (), source, key=(value,), value=np.asarray(value))

    def filled(self, value: float, shape: Shape, source: str, *, place: int = 0) -> StepNode:
        """Return one number everywhere, as a tensor of a shape; tensors of different places are different nodes."""
        return self.node("const", (), shape, source, key=("filled", value, place), value=np.full(shape, value))
