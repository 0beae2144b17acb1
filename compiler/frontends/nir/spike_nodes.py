"""Nodes as ``nir`` takes them, made from the ``spike`` program of any model.

A neuron with decay alpha becomes ``tau = dt / (1 - alpha)`` and ``r = tau / dt``: forward Euler with dt gives it back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from xdsl.dialects import func
from xdsl.ir import BlockArgument, Operation, SSAValue

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.reference.neuron import Neuron
from h2learn.compiler.model import Model
from h2learn.dialects.common import IoEntry, get_io, source_of
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import int_values, integrator_of, neuron_of, tensor_type
from h2learn.dialects.spike.interpreter import main_block

from .nodes import Node, conv, flatten, pool, port
from .plan import Shape

_WITH_TIME = (3, 5)


def spike_nodes(model: Model, dt: float) -> tuple[list[Node], list[str]]:
    """Return the nodes of a model and notes on what they leave out.

    Raises H2LearnError for a model that is no chain, and for an op or a constant that NIR has no node for.
    """
    return _Exporter(model, dt).run()


class _Exporter:
    """Turns the ops of a chain into nodes, in order."""

    def __init__(self, model: Model, dt: float) -> None:
        self.model = model
        self.dt = dt
        self.nodes: list[Node] = []
        self.notes: list[str] = [f"read it with dt {dt:g}, discretisation forward-euler"]
        self.taken: set[str] = set()

    def run(self) -> tuple[list[Node], list[str]]:
        block = main_block(self.model.module)
        self.entries: Sequence[IoEntry] = get_io(self.model.module)
        inputs = [a for a, e in zip(block.args, self.entries, strict=False) if e.role == "input"]
        outputs = [e.name for e in self.entries[len(block.args) :]]
        if len(inputs) != 1 or len(outputs) != 1:
            raise H2LearnError(
                f"expected a model with one input and one output to export, found {len(inputs)} and {len(outputs)}"
            )
        value: SSAValue = inputs[0]
        self._add(self.entries[inputs[0].index].name, "Input", port("input", _sample(value)))
        while not isinstance(op := self._only_user(value), func.ReturnOp):
            value = self._op(op)
        self._add(outputs[0], "Output", port("output", _sample(value)))
        return self.nodes, self.notes

    def _only_user(self, value: SSAValue) -> Operation:
        users = [use.operation for use in value.uses]
        if len(users) != 1:
            raise H2LearnError(
                f"expected a chain of layers to export, found a value with {len(users)} readers",
                location=source_of(value.owner) if isinstance(value.owner, Operation) else None,
            )
        user: Operation = users[0]
        return user

    def _op(self, op: Operation) -> SSAValue:
        """Add the node of an op and return the value that goes on."""
        match op:
            case spike.EncodeOp():
                self.notes.append(f"{op.kind.data} encoding over {op.time_steps.value.data} steps is not in the file")
            case spike.ReadoutOp():
                self.notes.append(f"the readout ({op.kind.data}) is not in the file")
            case spike.ConvOp() | spike.LinearOp():
                self._synapse(op)
            case spike.PoolOp():
                self._pool(op)
            case spike.FlattenOp():
                self._add("flatten", "Flatten", flatten(_sample(op.x)))
            case spike.LifOp():
                self._lif(op)
            case spike.DelayOp():
                seconds = np.asarray(op.steps.get_values(), dtype=np.float64) * self.dt
                self._add("delay", "Delay", {"delay": _spread(seconds, _sample(op.x))})
            case spike.ScanOp():
                self._feedback(op)
            case spike.LiOp():
                self._neuron(op, integrator_of(op), {}, ("I", "LI", "CubaLI"))
            case _:
                raise self._refusal(op, f"NIR has no node for {op.name}")
        return op.results[0]

    def _feedback(self, op: spike.ScanOp) -> None:
        """Add neurons and the weights through which their spikes come back."""
        match list(op.body.block.ops)[:-1]:
            case [spike.LinearOp() as weights, spike.AddOp(), spike.LifOp() as neurons] if weights.x in op.fed_back:
                self._lif(neurons)
                self._synapse(weights, feedback=True)
            case layers:
                raise self._refusal(op, f"NIR export of feedback through {', '.join(one.name for one in layers)}")

    def _synapse(self, op: spike.ConvOp | spike.LinearOp, *, feedback: bool = False) -> None:
        weight = self._parameter(op.weight)
        fields: dict[str, object] = {"weight": self.model.parameters[weight]}
        kind = "Linear" if op.bias is None else "Affine"
        if op.bias is not None:
            fields["bias"] = self.model.parameters[self._parameter(op.bias)]
        if isinstance(op, spike.ConvOp):
            kind = "Conv2d"
            fields.setdefault("bias", np.zeros(self.model.parameters[weight].shape[0], dtype=np.float32))
            stride, padding = (int_values(op.properties, name, 2) for name in ("stride", "padding"))
            fields |= conv(_sample(op.x), (stride[0], stride[1]), (padding[0], padding[1]))
        self._add(weight.removesuffix(".weight"), kind, fields, feedback=feedback)

    def _pool(self, op: spike.PoolOp) -> None:
        kinds = {"avg": "AvgPool2d", "sum": "SumPool2d"}
        if op.kind.data not in kinds:
            raise self._refusal(op, f"NIR has no {op.kind.data} pooling")
        window = [int_values(op.properties, name, 2) for name in ("kernel", "stride", "padding")]
        self._add("pool", kinds[op.kind.data], pool(*window))

    def _lif(self, op: spike.LifOp) -> None:
        if op.decay is not None or op.threshold is not None:
            raise self._refusal(op, "the export of learned decays and thresholds is not implemented")
        neuron = neuron_of(op)
        thresholds = {"v_threshold": np.asarray(neuron.theta), "v_reset": np.asarray(neuron.v_reset)}
        name = self._neuron(op, neuron, thresholds, ("IF", "LIF", "CubaLIF"))
        self._remember(f"{name}: reset {neuron.reset.replace('_', '-')}", neuron.reset != "hard")
        self._remember(f"{name}: spikes at u >= threshold", neuron.compare == "ge")
        self._remember(f"{name}: spikes per step, {neuron.max_spikes or 'any number'}", neuron.counts)
        self._remember(f"{name}: potentials of at least {neuron.v_min or 0:g}", neuron.v_min is not None)

    def _neuron(
        self,
        op: Operation,
        neuron: Neuron,
        thresholds: Mapping[str, npt.NDArray[np.float64]],
        kinds: tuple[str, str, str],
    ) -> str:
        """Add the node of a neuron and return its name; ``kinds``: without a leak, with one, with a synapse as well."""
        alpha, gain, beta = (np.asarray(values) for values in (neuron.alpha, neuron.gain, neuron.beta))
        if (alpha < 0).any() or (alpha > 1).any() or ((alpha == 1).any() and not (alpha == 1).all()):
            raise self._refusal(op, f"NIR has no neuron with decays {alpha.min():g} to {alpha.max():g}")
        leaky, synaptic = bool((alpha != 1).all()), neuron.synapse != "none"
        if synaptic and (neuron.synapse == "delayed" or not leaky or (beta < 0).any() or (beta >= 1).any()):
            raise self._refusal(op, "NIR has no neuron with such a synaptic current")
        if not leaky:
            constants = {"r": gain / self.dt}
        else:
            tau = self.dt / (1 - alpha)
            constants = {"tau": tau, "r": gain * tau / self.dt, "v_leak": np.asarray(neuron.v_leak)}
        if synaptic:
            tau_syn = self.dt / (1 - beta)
            constants |= {"tau_mem": constants.pop("tau"), "tau_syn": tau_syn, "w_in": tau_syn / self.dt}
        shape = _sample(op.results[0])
        fields = {name: _spread(v, shape) for name, v in {**constants, **thresholds}.items()}
        name = self._add(_hint(op, kinds[0].lower()), kinds[2 if synaptic else int(leaky)], fields)
        start = neuron.v_leak if leaky else (0.0,)
        self._remember(f"{name}: initial potentials {_range(neuron.initial)}", neuron.initial != start)
        return name

    def _parameter(self, value: SSAValue) -> str:
        assert isinstance(value, BlockArgument)
        return self.entries[value.index].name

    def _add(self, name: str, kind: str, fields: Mapping[str, object], *, feedback: bool = False) -> str:
        base = name.replace("/", ".")
        unique, count = base, 1
        while unique in self.taken:
            count += 1
            unique = f"{base}_{count}"
        self.taken.add(unique)
        self.nodes.append(Node(unique, kind, fields, feedback))
        return unique

    def _remember(self, what: str, true: bool) -> None:
        if true:
            self.notes.append(f"{what} is not in the file: the reader has to be told")

    def _refusal(self, op: Operation, reason: str) -> H2LearnError:
        return H2LearnError(reason, location=source_of(op) or None)


def _sample(value: SSAValue) -> Shape:
    """Return the shape of one sample at one time step, channels first."""
    shape = tuple(tensor_type(value.type).get_shape())
    own = shape[2:] if len(shape) in _WITH_TIME else shape[1:]
    return (own[-1], *own[:-1])


def _spread(values: npt.NDArray[np.float64], shape: Shape) -> npt.NDArray[np.float64]:
    """Return one number, or one per channel, at every neuron."""
    flat = np.ravel(values)
    return np.broadcast_to(flat.reshape(-1, *(1,) * (len(shape) - 1)), shape).copy()


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _hint(op: Operation, default: str) -> str:
    return op.results[0].name_hint or default
