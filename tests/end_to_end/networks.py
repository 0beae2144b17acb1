"""Seeded random networks, their data, and how to run them at every level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import numpy.typing as npt
from xdsl.dialects import builtin
from xdsl.ir import SSAValue

from h2learn.backends.h2learn.errors import H2LearnError, Location
from h2learn.backends.h2learn.object_file import ObjectFile
from h2learn.backends.reference.neuron import (
    COMPACT_SURROGATES,
    SURROGATES,
    SYNAPSES,
    Neuron,
    after_reset,
    spike_count,
    threshold_distance,
)
from h2learn.backends.reference.training import RunScalars
from h2learn.compiler.autodiff.spec import SGD, Adam, AdamW, MSECount, Optimizer, Train
from h2learn.compiler.driver import Recipe, emit_program
from h2learn.compiler.folding import folded
from h2learn.compiler.frontends.builder import Learned, NetworkBuilder, Signal
from h2learn.compiler.model import Model, Network
from h2learn.compiler.universe import new_context
from h2learn.dialects.common import PRECISION_ATTRIBUTE, Array, get_io, parameter_of_state, state_name
from h2learn.dialects.h2.interpreter import interpret as interpret_h2
from h2learn.dialects.lut.interpreter import interpret as interpret_lut
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import SPIKE_READOUTS, int_values, neuron_of, tensor_type
from h2learn.dialects.spike.interpreter import interpret as interpret_spike
from h2learn.dialects.spike.interpreter import main_block
from h2learn.dialects.spike.scan import scans, with_all_values
from h2learn.dialects.tile.interpreter import interpret as interpret_tile
from h2learn.runtime.counters import RunReport
from h2learn.runtime.device import Device
from h2learn.runtime.loader import load

HERE = Location("net.snn", 1, 1)
CLASSES = 4
MARGIN = 1e-5
MOST_FEATURES = 360  # of the map in front of a linear layer, so that interpreters stay quick
LEARNING_RATE, RANDOM_SEED, FIRST_SAMPLE = 0.25, 0x1_0000_0007, 3
INTERPRETERS = {"spike": interpret_spike, "lut": interpret_lut, "tile": interpret_tile, "h2": interpret_h2}
LAST_PASS = {"h2l-spike-to-lut": "lut", "h2l-insert-tokens": "tile", "h2l-tile-to-h2": "h2"}

FED = ("input", "label")
MACHINE_CHANGES = (
    "forward.fan_in=2",
    "weight_update.fan_in=3",
    "weight_update.lanes_c=8",
    "backward.width=16",
    "backward.elements=3",
    "vector.lanes=7",
    "queue_depth=2",
    "dram.burst_bytes=32",
)
"""Changes of a machine that some networks are compiled for."""

Key = tuple[str, str]
Named = dict[Key, Array]


@dataclass(frozen=True)
class Data:
    """One batch by (role, name) in the user's order; samples from ``valid`` on are absent and hold zeros.

    ``certain``: no neuron, window edge or maximum is so close that rounding decides it.
    """

    arrays: Named
    valid: int
    certain: bool = True
    over_time: bool = False


@dataclass
class Case:
    """A network, what to compile it for, one batch of data, and its program at every level."""

    model: Model
    recipe: Recipe
    data: Data
    levels: dict[str, builtin.ModuleOp] = field(init=False)
    program: ObjectFile = field(init=False)

    def __post_init__(self) -> None:
        self.levels = lowered(self.model, self.recipe)
        self.program = emit_program(self.model, self.levels["h2"], self.recipe)

    def run_level(self, level: str) -> Named:
        """Return the results of a level by (role, name), in the user's order."""
        module = self.levels[level]
        return self.in_source_order(module, INTERPRETERS[level](module, self.arguments()))

    def arguments(self) -> list[Array]:
        """Return the data as arguments of ``@main``."""
        return arguments(self.levels["spike"], self.data)

    def run_device(
        self,
        program: ObjectFile | None = None,
        *,
        execute: str = "fast",
        timing: bool = True,
        sanitize: Sequence[str] = (),
    ) -> tuple[Named, RunReport]:
        """Run a binary (default: own) on the simulator; return results like ``run_level``, and the report."""
        device = Device(load(program or self.program), execute=execute, timing=timing, sanitize=sanitize)
        for (role, name), value in self.data.arrays.items():
            if role in ("parameter", "state"):
                device.write(name, value, role)
        fed = {name: device_samples(self.data, role, name) for role, name in self.data.arrays if role in FED}
        settings = {"seed": RANDOM_SEED, "first_sample": FIRST_SAMPLE, "lr": LEARNING_RATE}
        scalars = any(entry["role"] == "scalars" for entry in self.program.note["io"])
        report = device.run(fed, **(settings if scalars else {})).report
        entries = get_io(self.levels["spike"])[len(main_block(self.levels["spike"]).args) :]
        results = {(e.role, e.name): np.asarray(device.read(e.name, e.role)) for e in entries}
        return {key: value.reshape(self.source_shape(*key)) for key, value in results.items()}, report

    def in_source_order(self, module: builtin.ModuleOp, results: Sequence[Array]) -> Named:
        """Return results of ``@main`` by (role, name), gradients without their scale."""
        attribute = module.attributes.get("h2learn.gradient_scale")
        scale = np.float32(attribute.value.data if isinstance(attribute, builtin.FloatAttr) else 1)
        entries = get_io(module)[-len(results) :]
        named: Named = {}
        for entry, value in zip(entries, results, strict=True):
            result = entry.to_source(np.asarray(value), self.source_shape(entry.role, entry.name))
            named[entry.role, entry.name] = np.divide(result, scale) if entry.role == "gradient" else result
        return named

    def source_shape(self, role: str, name: str) -> tuple[int, ...]:
        """Return the user's shape of a result."""
        if role == "output":
            return self.model.outputs[name].shape
        return (
            () if role == "loss" else self.model.parameters[parameter_of_state(name) if role == "state" else name].shape
        )


def random_case(seed: int, *, train: bool = True) -> Case:
    """Return a tiny network with random everything; two of three have random tile limits.

    A linear layer behind a map is a kernel as large as the map, which now and then only the large machine has room for.
    """
    rng = np.random.default_rng([2026, seed])
    tiled = rng.random() < 2 / 3
    recipe = Recipe(
        arch=str(rng.choice(["h2l-v0", "h2l-edge"])),
        precision=str(rng.choice(["fp32", "fp16"])),
        train=random_train(rng) if train else None,
        limits=random_limits(rng) if tiled else "",
    )
    most = 4 if tiled else 6
    batch, steps = int(rng.integers(1, most)), int(rng.integers(1, most + 1))
    model = random_model(rng, batch=batch, steps=steps)
    model = model if train else folded(model)
    if recipe.train is not None and _counts_spikes(model) and rng.spawn(1)[0].random() < 0.4:
        recipe = replace(recipe, train=replace(recipe.train, loss=MSECount(0.8, 0.3)))
    data = certain_data(model, recipe, rng)
    recipe = with_variants(recipe, np.random.default_rng([2027, seed]))
    if train and "norm" not in "".join(model.parameters):  # batch normalisation takes all samples together
        limits = [recipe.limits, random_groups(batch, np.random.default_rng([2028, seed]))]
        recipe = replace(recipe, limits=",".join(filter(None, limits)))
    try:
        return Case(model, recipe, data)
    except H2LearnError as error:
        if "fits the on-chip memories" not in error.message:
            raise
    return Case(model, replace(recipe, arch=str(recipe.arch).replace("h2l-edge", "h2l-v0")), data)


def with_variants(recipe: Recipe, rng: np.random.Generator) -> Recipe:
    """Return a recipe with other choices of machine and mapping, each now and then."""
    drawn = rng.spawn(1)[0]
    changes = ["forward.skip_zero_patterns=true"] if rng.random() < 0.2 else []
    changes += [text for text in MACHINE_CHANGES if drawn.random() < 0.08]
    arch = f"{recipe.arch}:{','.join(changes)}" if changes else recipe.arch
    choices = {
        "double_buffering=off": 0.2,
        "potential=saved": 0.4,
        f"sparsity={rng.choice(['dense', 'in', 'out'])}": 0.3,
        f"operand_form={rng.choice(['planes', 'multipliers'])}": 0.6,
        "head=apart": 0.5,
        f"entry={rng.choice(['apart', 'joined'])}": 0.5,
        "jobs=short": 0.4,
    }
    chosen = [recipe.limits, *(text for text, share in choices.items() if rng.random() < share)]
    others = {f"fan={drawn.choice([1, 2, 3])}": 0.2, "overlap=backward": 0.15}
    chosen += [text for text, share in others.items() if drawn.random() < share]
    return replace(recipe, arch=arch, limits=",".join(filter(None, chosen)))


def _counts_spikes(model: Model) -> bool:
    """Whether the network ends with spikes that are read out."""
    readouts = (op for op in model.module.walk() if isinstance(op, spike.ReadoutOp))
    return any(op.kind.data in SPIKE_READOUTS for op in readouts)


def random_train(rng: np.random.Generator) -> Train:
    """Return a training recipe."""
    return Train(
        loss=str(rng.choice(["cross_entropy", "mse_rate"])),
        optimizer=random_optimizer(rng.spawn(1)[0], float(rng.choice([0.0, 0.9]))),
        detach_reset=bool(rng.random() < 0.2),
    )


def random_optimizer(rng: np.random.Generator, momentum: float) -> Optimizer:
    """Return any optimizer."""
    decay = float(rng.choice([0.0, 0.0, 0.125]))
    if rng.random() < 0.6:
        return SGD(momentum=momentum, weight_decay=decay, nesterov=bool(momentum and rng.random() < 0.5))
    return (Adam, AdamW)[int(rng.integers(2))](betas=(0.5, 0.75), weight_decay=decay)


def random_groups(batch: int, rng: np.random.Generator) -> str:
    """Return how a batch is cut into groups of any sizes, now and then nothing."""
    if rng.random() < 1 / 3:
        return ""
    sizes: list[int] = []
    while sum(sizes) < batch:
        sizes.append(int(rng.integers(1, batch - sum(sizes) + 1)))
    return f"groups={'+'.join(map(str, sizes))}"


def random_limits(rng: np.random.Generator) -> str:
    """Return limits under which every dimension of these networks is cut."""
    choices = {"steps": (1, 2), "samples": (1, 2), "rows": (2, 3), "columns": (2, 4), "c": (8,), "k": (8,)}
    parts = [f"{name}={rng.choice(values)}" for name, values in choices.items()]
    return ",".join([*parts, f"elements={rng.choice([40, 100, 400])}"])


def random_model(rng: np.random.Generator, *, batch: int, steps: int, dyadic: bool = False) -> Model:
    """Return a model whose neurons fire; ``dyadic``: all constants and weights are small multiples of powers of two."""
    network = random_network(rng, batch, steps, dyadic=dyadic)
    parameters = {}
    for name, spec in network.parameters.items():
        deviation = 1.5 / np.sqrt(np.prod(spec.shape[1:])) if len(spec.shape) > 1 else 0.3
        value = rng.normal(0.02, deviation, spec.shape)
        value = np.abs(value) + 0.5 if name in network.constants else value
        parameters[name] = (np.round(value * 16) / 16 if dyadic else value).astype(np.float32)
    return Model("random", network, parameters, None, lambda _: network)


def random_network(rng: np.random.Generator, batch: int, steps: int, *, dyadic: bool) -> Network:
    """Return an encoding, up to two convolutions with or without pooling, one or two linear layers, a readout."""
    builder = NetworkBuilder(batch)
    encoding = str(rng.choice(["direct", "bernoulli", "real", "spikes"], p=[0.4, 0.2, 0.15, 0.25]))
    timed = None if encoding in ("direct", "bernoulli") else steps
    maps = rng.random() < 0.85
    shape = (int(rng.choice([1, 2, 3, 8, 10])), int(rng.integers(4, 7)), int(rng.integers(4, 7)))
    rows = maps and rng.random() < 0.15
    sample = (shape[0], 4 * shape[2]) if rows else shape if maps else (24,)
    drawn = np.random.default_rng([*(int(size) for size in sample), steps])
    bits = int(drawn.choice([0, 2, 3])) if encoding in ("direct", "real") and not dyadic else 0
    x = builder.input("x", sample, HERE, time_steps=timed, binary=encoding == "spikes", bits=bits)
    if timed is None:
        x = builder.encode(x, encoding, steps, HERE)
    if maps:
        for layer in range(int(rng.integers(0, 3))):
            x = _convolution(builder, _dropped(builder, x, rng), f"conv{layer}", rng, dyadic=dyadic)
            if rng.random() < 0.4:
                x = _residual(builder, x, f"block{layer}", rng, dyadic=dyadic)
        while np.prod(x.shape[-3:]) > MOST_FEATURES:
            window = (1, 2) if builder.is_row(x) else (2, 2)
            x = builder.pool(x, "avg", window, window, HERE)
        x = builder.flatten(x, HERE)
    if rng.random() < 0.5:
        x = builder.linear(x, "hidden", int(rng.choice([6, 16, 20])), HERE, bias=bool(rng.integers(2)))
        before, behind = (int(rng.integers(0, 4)) if rng.random() < 0.25 else 0 for _ in range(2))
        if before and timed is not None:
            x = builder.delay(x, _delays(x, before, rng), HERE)
        x = _neurons(builder, x, "hidden_feedback", rng, dyadic=dyadic)
        if behind:
            x = builder.delay(x, _delays(x, behind, rng), HERE)
    x = _dropped(builder, _filtered(builder, x, rng, dyadic=dyadic), rng)
    x = builder.linear(x, "last", CLASSES, HERE, bias=bool(rng.integers(2)))
    kind = str(rng.choice(["rate", "membrane_mean", "membrane_last"]))
    kind = "count" if kind == "rate" and rng.spawn(1)[0].random() < 0.5 else kind
    kind = "membrane_max" if kind == "membrane_last" and rng.spawn(1)[0].random() < 0.5 else kind
    if kind in ("rate", "count"):
        x = _neurons(builder, x, "last_feedback", rng, dyadic=dyadic)
    else:
        x = builder.li(x, random_neuron(rng, dyadic=dyadic), HERE)
    builder.output("logits", builder.readout(x, kind, HERE))
    return builder.finish("random", HERE)


def _delays(x: Signal, steps: int, rng: np.random.Generator) -> list[int]:
    """Return ``steps``, or in every third place a delay of its own for each channel."""
    drawn = rng.spawn(1)[0]
    return [steps] if drawn.random() > 1 / 3 else np.sort(drawn.integers(0, steps + 1, x.shape[-1])).tolist()


def random_neuron(rng: np.random.Generator, *, dyadic: bool) -> Neuron:
    """Return neurons with any reset, surrogate and drive; see also :func:`_with_variants`."""

    def constant(powers_of_two: Sequence[float], low: float, high: float) -> tuple[float, ...]:
        return (float(rng.choice(powers_of_two)) if dyadic else float(rng.uniform(low, high)),)

    driven = rng.random() < 0.5
    neuron = Neuron(
        alpha=constant([0.5, 1.0], 0.3, 1.0),
        theta=constant([0.5, 1.0], 0.3, 0.8),
        v_reset=constant([0.0, 0.25], -0.2, 0.2),
        reset=str(rng.choice(["hard", "soft", "soft_delayed", "none"])),
        compare=str(rng.choice(["gt", "ge"])),
        surrogate="rectangular" if dyadic else str(rng.choice(SURROGATES)),
        width=constant([0.5, 1.0], 0.5, 1.5)[0],
        height=constant([0.5, 1.0], 0.3, 1.0)[0],
        detach_reset=bool(rng.integers(2)),
        gain=constant([0.5, 2.0], 0.4, 2.0) if driven else (1.0,),
        v_leak=constant([0.0, 0.5], -0.2, 0.2) if driven else (0.0,),
        initial=constant([0.0, 0.25], -0.2, 0.2) if driven else (0.0,),
        synapse=str(rng.choice(SYNAPSES)) if driven else "none",
        beta=constant([0.5, 0.25], 0.2, 0.9),
    )
    numbers = (neuron.alpha, neuron.theta, neuron.v_reset, (neuron.width, neuron.height))
    return _with_variants(neuron, np.random.default_rng([int(256 * abs(v)) for values in numbers for v in values]))


def _with_variants(neuron: Neuron, rng: np.random.Generator) -> Neuron:
    """Return every fourth neuron with several spikes per step, every fifth with a lowest potential."""
    if rng.random() < 0.25:
        detach, periodic = neuron.detach_reset or neuron.reset == "hard", bool(rng.integers(2))
        most = int(rng.choice([0, 2, 5]))
        neuron = replace(neuron, compare="ge", max_spikes=most, periodic=periodic, detach_reset=detach)
    return replace(neuron, v_min=float(rng.choice([-0.25, 0.125]))) if rng.random() < 0.2 else neuron


def _neurons(builder: NetworkBuilder, x: Signal, name: str, rng: np.random.Generator, *, dyadic: bool) -> Signal:
    """Return the spikes of neurons, of which every third layer is recurrent."""
    neuron = random_neuron(rng, dyadic=dyadic)
    if rng.random() > 0.35:
        return _lif(builder, x, neuron, name.removesuffix("_feedback"), rng)
    bias = bool(rng.integers(2))
    return builder.recurrent(x, name, lambda c: builder.lif(c, neuron, HERE), HERE, bias=bias, counted=neuron.counts)


def _convolution(builder: NetworkBuilder, x: Signal, name: str, rng: np.random.Generator, *, dyadic: bool) -> Signal:
    (kh, kw), (sh, sw), (ph, pw) = (rng.integers(low, high, 2).tolist() for low, high in ((1, 4), (1, 3), (0, 2)))
    rows, columns = x.shape[-3:-1]
    channels, bias = int(rng.choice([3, 8, 12, 16])), bool(rng.integers(2))
    if builder.is_row(x):
        kh, sh, ph = 1, 1, 0
    kernel = (min(kh, rows + 2 * ph), min(kw, columns + 2 * pw))
    dilation, groups = (1, 1), 1
    if rng.random() < 0.3:
        dilation = tuple(rng.integers(1, 3, 2).tolist())
        dilation = tuple(
            step if (size - 1) * step + 1 <= there else 1
            for size, step, there in zip(kernel, dilation, (rows + 2 * ph, columns + 2 * pw), strict=True)
        )
        groups = int(rng.choice([g for g in range(1, 17) if x.shape[-1] % g == 0 and channels % g == 0]))
    x = builder.conv(
        *(x, name, channels, HERE),
        kernel=kernel,
        stride=(sh, sw),
        padding=(ph, pw),
        dilation=(dilation[0], dilation[1]),
        groups=groups,
        bias=bias,
    )
    x = x if dyadic else _normalised(builder, x, name, rng)
    x = _pooling(builder, x, rng)
    return _pooling(builder, _lif(builder, x, random_neuron(rng, dyadic=dyadic), f"{name}.neurons", rng), rng)


def _lif(builder: NetworkBuilder, x: Signal, neuron: Neuron, name: str, rng: np.random.Generator) -> Signal:
    """Add neurons, of which every third plain ones learn decay or threshold."""
    drawn = rng.spawn(1)[0]
    if neuron.reset == "hard" and not neuron.counts and drawn.spawn(1)[0].random() < 0.3:
        return builder.lif(x, replace(neuron, reset="hard_delayed"), HERE)
    if not (neuron.is_driven_plainly and neuron.may_learn) or x.maps or drawn.random() > 1 / 3:
        return builder.lif(x, neuron, HERE)
    rows = (str(drawn.choice(["", "unit", "falling", "sigmoid"])), str(drawn.choice(["", "plain"])))
    per_channel = frozenset(name for name in ("decay", "threshold") if drawn.random() < 0.5)
    return builder.lif(x, replace(neuron, alpha=(0.5,)), HERE, name, Learned(*rows, per_channel))


def _residual(builder: NetworkBuilder, x: Signal, name: str, rng: np.random.Generator, *, dyadic: bool) -> Signal:
    """Return ``x`` after a block with a shortcut: currents or spikes are added, by convolution or as they are."""

    def conv(source: Signal, suffix: str, channels: int, size: int, stride: int = 1) -> Signal:
        kernel, padding, strides = (size, size), (size // 2, size // 2), (stride, stride)
        if builder.is_row(x):
            kernel, padding, strides = (1, size), (0, size // 2), (1, stride)
        bias = bool(rng.integers(2))
        label = f"{name}{suffix}"
        return builder.conv(source, label, channels, HERE, kernel=kernel, stride=strides, padding=padding, bias=bias)

    def lif(current: Signal) -> Signal:
        return builder.lif(current, random_neuron(rng, dyadic=dyadic), HERE)

    kind = str(rng.choice(["projection", "identity", "spikes", "double", "concat"]))
    if kind == "projection":
        channels, stride = int(rng.choice([3, 8, 12])), int(rng.integers(1, 3))
        inner = lif(conv(x, "a", channels, 3, stride)) if rng.random() < 0.5 else x
        main = conv(inner, "b", channels, 3, 1 if inner is not x else stride)
        terms = [main, conv(x, "shortcut", channels, 1, stride)]
        return lif(builder.add(terms if rng.random() < 0.5 else terms[::-1], HERE))
    channels = x.shape[-1]
    if kind == "identity":
        return lif(builder.add([conv(x, "a", channels, 3), x], HERE))
    if kind == "concat":
        parts = [x, lif(conv(x, "a", int(rng.choice([3, 8])), 3))]
        parts += [conv(x, "b", 3, 1)] if rng.random() < 0.4 else []
        return builder.concat(parts[:: int(rng.choice([1, -1]))], HERE)
    spikes = lif(conv(x, "a", channels, 3))
    drawn = rng.spawn(1)[0]
    if x.is_spikes and spikes.is_spikes and drawn.random() < 0.4:
        gates = ("keep", "drop")
        both = builder.gate(x, spikes, str(drawn.choice(gates)), HERE)
        if drawn.random() < 0.5:
            return both
        return lif(builder.gate(conv(both, "b", channels, 1), spikes, str(drawn.choice(gates)), HERE))
    total = builder.add([spikes, x], HERE)
    if kind == "double":
        total = builder.add([lif(conv(total, "b", channels, 1)), total], HERE)
    return total


def _filtered(builder: NetworkBuilder, x: Signal, rng: np.random.Generator, *, dyadic: bool) -> Signal:
    """Put integrators behind the spikes of every sixth network."""
    drawn = rng.spawn(1)[0]
    if not x.is_spikes or drawn.random() > 1 / 6:
        return x
    return builder.li(x, random_neuron(drawn, dyadic=dyadic), HERE)


def _dropped(builder: NetworkBuilder, x: Signal, rng: np.random.Generator) -> Signal:
    """Add dropout in one of seven places, whose factor is a power of two."""
    drawn = rng.spawn(1)[0]
    if drawn.random() > 1 / 7:
        return x
    every_step = bool(drawn.random() < 0.5)
    return builder.dropout(x, float(drawn.choice([0.5, 0.75])), HERE, every_step=every_step)


def _normalised(builder: NetworkBuilder, x: Signal, name: str, rng: np.random.Generator) -> Signal:
    """Add batch normalisation to every third layer."""
    drawn = rng.spawn(1)[0]
    if drawn.random() > 0.35:
        return x
    return builder.batch_norm(x, f"{name}.norm", HERE, momentum=float(drawn.choice([0.1, 1.0])))


def _pooling(builder: NetworkBuilder, x: Signal, rng: np.random.Generator) -> Signal:
    down = 1 if builder.is_row(x) else 2
    if rng.random() > 0.35 or min(x.shape[-3:-1]) < 3 * down - 3 or x.shape[-2] < 3:
        return x
    stride = (int(rng.integers(1, down + 1)), int(rng.integers(1, 3)))
    window, padding = (down, 2), (int(rng.integers(0, down)), int(rng.integers(0, 2)))
    return builder.pool(x, str(rng.choice(["avg", "max", "sum"])), window, stride, HERE, padding=padding)


def certain_data(model: Model, recipe: Recipe, rng: np.random.Generator) -> Data:
    """Return data in which rounding decides nothing, if some are soon found; half precision takes any."""
    if recipe.precision == "fp16":
        return random_data(model, recipe.train, rng)
    graph = training_graph(model, recipe)
    for _ in range(10):
        data = random_data(model, recipe.train, rng)
        if margin(graph, data) > MARGIN:
            return data
    return replace(data, certain=False)


def random_data(model: Model, train: Train | None, rng: np.random.Generator, *, dyadic: bool = False) -> Data:
    """Return one batch, of which the last samples may be absent."""
    (spec,) = model.inputs.values()
    over_time = len(tensor_type(main_block(model.module).args[0].type).get_shape()) in (3, 5)
    axis = 1 if over_time else 0
    batch = spec.shape[axis]
    valid = int(rng.integers(1, batch + 1))
    live = (np.arange(batch) < valid).reshape([-1 if n == axis else 1 for n in range(len(spec.shape))])
    x = rng.integers(0, 9, spec.shape) / 8 if dyadic else rng.random(spec.shape)
    x = x < 0.4 if spec.dtype == "bool" else (x * (rng.random(spec.shape) < 0.8)).astype(np.float32)
    x = (np.floor(np.ldexp(x, spec.bits)) / (1 << spec.bits)).astype(np.float32) if spec.bits else x
    arrays: Named = {("input", "x"): x & live if spec.dtype == "bool" else x * live}
    arrays |= {("parameter", name): value for name, value in model.parameters.items()}
    if train is not None:
        arrays["label", "label"] = (rng.integers(0, CLASSES, batch) * (np.arange(batch) < valid)).astype(np.int32)
        for kind, (name, value) in product(train.optimizer.states, model.parameters.items()):
            if name.endswith(("running_mean", "running_var")):
                continue
            state = rng.integers(-4, 5, value.shape) / 8 if dyadic else rng.normal(0, 0.1, value.shape)
            state = np.abs(state) + 0.01 if kind == "exp_avg_sq" else state
            arrays["state", state_name(kind, name)] = state.astype(np.float32)
    return Data(arrays, valid, over_time=over_time)


def device_samples(data: Data, role: str, name: str) -> Array:
    """Return only the samples of an input that are there."""
    value = data.arrays[role, name]
    return value[:, : data.valid] if data.over_time and role == "input" else value[: data.valid]


def arguments(graph: builtin.ModuleOp, data: Data) -> list[Array]:
    """Return the data as arguments of ``@main`` (of ``graph`` and of what it is lowered to)."""
    scalars = RunScalars(LEARNING_RATE, data.valid, 0, RANDOM_SEED, FIRST_SAMPLE).to_array()
    entries = get_io(graph)[: len(main_block(graph).args)]
    return [
        scalars if entry.role == "scalars" else entry.to_device(data.arrays[entry.role, entry.name])
        for entry in entries
    ]


def margin(graph: builtin.ModuleOp, data: Data) -> float:
    """Return how far the nearest decision is from its edge: thresholds, surrogate windows, maxima of reals."""
    probe = graph.clone()
    block = main_block(probe)
    outside = {}
    for loop in scans(block):
        found = with_all_values(loop)
        outside |= dict(zip(found.yielded, found.outputs, strict=True))
    deciding = [
        op
        for op in block.walk()
        if isinstance(op, spike.LifOp) or (isinstance(op, spike.PoolOp | spike.ReadoutOp) and "max" in op.kind.data)
    ]
    end = block.last_op
    assert end is not None
    learned = [op.threshold for op in deciding if isinstance(op, spike.LifOp) and op.threshold is not None]
    end.operands = [outside.get(op.u, op.u) if isinstance(op, spike.LifOp) else op.x for op in deciding] + learned
    values = interpret_spike(probe, arguments(graph, data), np.float64)
    thresholds = dict(zip(learned, values[len(deciding) :], strict=True))
    return min((_distance(op, value, thresholds) for op, value in zip(deciding, values, strict=False)), default=np.inf)


def _distance(
    op: spike.LifOp | spike.PoolOp | spike.ReadoutOp,
    value: npt.NDArray[np.float64],
    thresholds: Mapping[SSAValue, npt.NDArray[np.float64]],
) -> float:
    if isinstance(op, spike.LifOp):
        neuron = neuron_of(op)
        theta = np.asarray(neuron.theta if op.threshold is None else thresholds[op.threshold])
        away = np.abs(value - theta * (np.maximum(np.round(value / theta), 1) if neuron.counts else 1))
        near = threshold_distance(value, theta, periodic=neuron.periodic)
        edges = np.abs(near - neuron.width) if neuron.surrogate in COMPACT_SURROGATES else away
        if neuron.v_min is None:
            return float(min(away.min(), edges.min()))
        fired = spike_count(value, theta, neuron.max_spikes)
        rest = np.abs(after_reset(value, fired, theta, np.asarray(neuron.v_reset), neuron.reset) - neuron.v_min)
        return float(min(away.min(), edges.min(), rest.min()))
    if value.dtype == np.bool_:
        return np.inf
    if isinstance(op, spike.ReadoutOp):
        ranked = np.sort(value, axis=0)
        return float((ranked[-1] - ranked[-2]).min()) if len(value) > 1 else np.inf
    kernel, stride, (ph, pw) = (int_values(op.properties, name, 2) for name in ("kernel", "stride", "padding"))
    value = np.pad(value, ((0, 0),) * (value.ndim - 3) + ((ph, ph), (pw, pw), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(value, kernel, axis=(-3, -2))
    windows = windows[..., :: stride[0], :: stride[1], :, :, :]
    ranked = np.sort(windows.reshape(*windows.shape[:-2], -1), axis=-1)
    return float(np.where(np.isinf(ranked[..., -2]), np.inf, ranked[..., -1] - ranked[..., -2]).min())


def training_graph(model: Model, recipe: Recipe) -> builtin.ModuleOp:
    """Return the program at the end of phase ``train``."""
    module = model.module.clone()
    module.attributes[PRECISION_ATTRIBUTE] = builtin.StringAttr(recipe.precision)
    for one in recipe.passes("train"):
        one.apply(new_context(), module)
    module.verify()
    return module


def lowered(model: Model, recipe: Recipe) -> dict[str, builtin.ModuleOp]:
    """Return the program at every level; ``spike`` is the training graph (without training: the model)."""
    module = training_graph(model, recipe)
    levels = {"spike": module.clone()}
    for one in recipe.passes("h2")[len(recipe.passes("train")) :]:
        one.apply(new_context(), module)
        if one.name in LAST_PASS:
            module.verify()
            levels[LAST_PASS[one.name]] = module.clone()
    return levels


def lowered_from_lut(module: builtin.ModuleOp, recipe: Recipe) -> builtin.ModuleOp:
    """Return the ``h2`` program of a ``lut`` program."""
    result = module.clone()
    names = [one.name for one in recipe.passes("h2")]
    for one in recipe.passes("h2")[names.index("h2l-lut-to-tile") :]:
        one.apply(new_context(), result)
    return result
