"""A model as the user knows it: names, shapes and layout of the source file, beside its ``spike`` module."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from xdsl.dialects import builtin

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.autodiff.spec import Train

Parameters = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class TensorSpec:
    """Shape and NumPy dtype name (``"float32"``, ``"bool"``) of a tensor in the source's layout.

    ``bits``: it holds multiples of ``2^-bits`` from 0 to below 1 (0: any reals). ``folded``: what its first dimension
    is made of, ``(T, -1)`` or ``(-1, T)`` with -1 for the samples (empty: it is one dimension).
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    bits: int = 0
    folded: tuple[int, ...] = ()

    def unfolded(self, shape: Sequence[int] | None = None) -> tuple[int, ...]:
        """Return the shape, or that of an array like it, with time and samples as dimensions of their own.

        An array whose first dimension is no multiple of T keeps its shape.
        """
        shape = self.shape if shape is None else tuple(shape)
        steps = max(self.folded, default=0)
        if not self.folded or not shape or shape[0] % steps:
            return tuple(shape)
        return (*(shape[0] // steps if size == -1 else size for size in self.folded), *shape[1:])


@dataclass(frozen=True)
class Network:
    """The batch-dependent part of a model: the ``spike`` module and its inputs, outputs and parameter shapes.

    ``constants``: parameters of a fresh model that all have the same value, which is not 0.
    """

    module: builtin.ModuleOp
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    parameters: Mapping[str, TensorSpec]
    constants: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StepInterface:
    """How a file that is a whole training step calls its inputs and outputs, parameters among them.

    ``inputs``: in the file's order. ``target``: the input for labels, classes ``[N]`` or ``one_hot`` ``[N, K]``.
    ``loss``: the output that is the loss. ``parameters``: each parameter's input and the output that is its new value.
    ``rate``: the input for the learning rate, or nothing. ``complete``: the model has values for its parameters, so
    that a run may leave them out.
    """

    inputs: tuple[str, ...]
    target: str
    one_hot: bool
    loss: str
    parameters: Mapping[str, str]
    rate: str = ""
    complete: bool = False

    def input_specs(
        self, fed: Mapping[str, TensorSpec], parameters: Mapping[str, TensorSpec], logits: tuple[int, ...]
    ) -> dict[str, TensorSpec]:
        """Return the inputs of a run in the file's order; ``fed``: those of the network, which gives ``logits``."""
        target = TensorSpec(logits) if self.one_hot else TensorSpec(logits[:1], "int32")
        known = {**fed, **parameters, self.rate: TensorSpec(()), self.target: target}
        return {name: known[name] for name in self.inputs}

    def output_specs(
        self, outputs: Mapping[str, TensorSpec], parameters: Mapping[str, TensorSpec]
    ) -> dict[str, TensorSpec]:
        """Return the outputs of a run: those of the network, the loss, and the new parameters."""
        new = {output: parameters[name] for name, output in self.parameters.items()}
        return {**outputs, self.loss: TensorSpec(()), **new}


@dataclass(frozen=True)
class Model:
    """A network with its parameters, ready to compile.

    ``inputs`` and ``outputs`` are in source order (``[N,C,H,W]``, or ``[T,N,C,H,W]`` without an encoder), parameters
    float32 in PyTorch layout (convolution ``[K,C,kh,kw]``, linear ``[out,in]``), named ``layer.weight``.
    ``train`` is the recipe that the file states, if any. ``build`` makes the network for a batch size. ``notes`` say
    what the front end assumed because the file does not say it. ``source`` is what an exporter needs of the file.
    ``step``: set when the file is a whole training step, which is then what the model compiles to.
    """

    name: str
    network: Network
    parameters: Parameters
    train: Train | None
    build: Callable[[int], Network]
    notes: tuple[str, ...] = ()
    source: object = None
    step: StepInterface | None = None

    @property
    def module(self) -> builtin.ModuleOp:
        """The ``spike`` module; parameters are arguments of its ``@main``."""
        return self.network.module

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Inputs by name, batch included; those of a whole training step hold the parameters and the target."""
        if self.step is None:
            return self.network.inputs
        logits = next(iter(self.network.outputs.values())).shape
        return self.step.input_specs(self.network.inputs, self.network.parameters, logits)

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Outputs by name, batch included; those of a whole training step hold the loss and the new parameters."""
        if self.step is None:
            return self.network.outputs
        return self.step.output_specs(self.network.outputs, self.network.parameters)

    def with_parameters(self, parameters: Mapping[str, npt.ArrayLike]) -> Model:
        """Return the model with other parameters.

        Raises H2LearnError for an unknown or missing name, another shape, or a value that is not finite.
        """
        for name in parameters:
            if name not in self.parameters:
                close = difflib.get_close_matches(name, self.parameters, n=1)
                hint = f"did you mean {close[0]}?" if close else f"the model has {', '.join(self.parameters)}"
                raise H2LearnError(f"expected a parameter of {self.name}, found {name}", hint=hint)
        missing = [name for name in self.parameters if name not in parameters]
        if missing:
            raise H2LearnError(f"expected all parameters of {self.name}, found none named {missing[0]}")
        checked = {name: _checked(name, parameters[name], old.shape) for name, old in self.parameters.items()}
        step = None if self.step is None else replace(self.step, complete=True)
        return replace(self, parameters=checked, step=step)

    def with_batch(self, batch: int) -> Model:
        """Return the model for ``batch`` samples at a time; raises H2LearnError unless it is a positive integer."""
        return replace(self, network=self.build(batch))


def _checked(name: str, value: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise H2LearnError(f"expected real numbers for parameter {name}, found {array.dtype}")
    if array.shape != shape:
        raise H2LearnError(f"expected shape {list(shape)} for parameter {name}, found {list(array.shape)}")
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    if not np.isfinite(single).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(single))[0])
        raise H2LearnError(f"expected finite values in parameter {name}, found {float(array[place])} at {list(place)}")
    return single
