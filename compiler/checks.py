"""``--check-each``: run the program before and after every pass on the same small random input and compare.

Contract (docs/semantics.md): from ``lut`` on, every level gives the same bits. From ``spike`` to ``lut`` sums may be
ordered differently: 1e-5 of the largest value where the spikes agree. A spike that flips changes more than rounding
does, so a difference there is tried again on other inputs before it counts. Inputs and parameters are multiples of
1/16 and 1/64, which makes most sums exact. The autodiff step has no level before it: what it shares with the forward
program is compared, and gradients by finite differences of a smooth variant (:mod:`.smooth`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from xdsl.dialects import builtin, func
from xdsl.ir import Attribute, BlockArgument, Operation

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.dialects.common import (
    GRADIENT_SCALE_ATTRIBUTE,
    Array,
    Interpreter,
    IoEntry,
    get_io,
    parameter_of_state,
    precision,
)
from h2learn.dialects.spike import ops as spike

from .manager import module_text
from .pipeline import load_object
from .smooth import reason_against, run_smooth

MAC_BUDGET = 50_000_000
"""Multiply-accumulates of one forward pass above which a program is too large for the interpreters."""

RELATIVE_TOLERANCE = {"f32": 1e-5, "f16": 5e-2}
ATTEMPTS = 3
DIFFERENCE_STEP = 1e-6
DIFFERENCE_TOLERANCE = 1e-5

INTERPRETERS: dict[str, str] = {
    "spike": "h2learn.dialects.spike.interpreter:interpret",
    "lut": "h2learn.dialects.lut.interpreter:interpret",
    "tile": "h2learn.dialects.tile.interpreter:interpret",
    "h2": "h2learn.dialects.h2.interpreter:interpret",
}
"""Level -> its interpreter. The training graph (``spike`` and ``sgrad``) is run by the one of ``spike``."""

_TRAINING_ONLY: dict[type[Operation], str] = {
    spike.BatchNormTrainOp: "batch normalisation goes from running to batch statistics",
    spike.DropoutTrainOp: "dropout begins",
}
"""Ops that change the results of the forward program, and why."""

_LAYERS = ("spike.conv", "spike.linear", "lut.fe_conv", "lut.be_conv")

Key = tuple[str, str]


@dataclass(frozen=True)
class Difference:
    """The largest difference found: of which result, absolute, and relative to the largest value of that result."""

    role: str
    name: str
    absolute: float
    relative: float


@dataclass(frozen=True)
class _Limits:
    classes: int
    samples: int


def check_pass(name: str, before: builtin.ModuleOp, after: builtin.ModuleOp, seed: int = 0) -> str:
    """Compare two programs as the contract between their levels says; return one line about the outcome.

    Raises H2LearnError when they differ by more than the contract allows.
    """
    if module_text(before, locations=False) == module_text(after, locations=False):
        return "unchanged"
    work = multiply_accumulates(before) or multiply_accumulates(after)
    if work > MAC_BUDGET:
        return f"skipped: {work} multiply-accumulates exceed the budget of {MAC_BUDGET}"
    if moved := _moved(get_io(before), get_io(after)):
        return f"skipped: the pass changes the layout of {moved!r}"
    levels = level_of(before), level_of(after)
    if levels[0] == "spike" and levels[1] == "spike":
        return _check_training_graph(name, before, after, seed)
    if levels[0] == "spike":
        return _check_numbers(name, before, after, seed, RELATIVE_TOLERANCE[precision(after)])
    return _check_numbers(name, before, after, seed, 0.0)


def level_of(module: builtin.ModuleOp) -> str:
    """Return the lowest level whose operations the program holds."""
    found = {op.dialect_name() for op in module.walk()}
    for level in ("h2", "tile", "lut"):
        if level in found:
            return level
    return "spike"


def multiply_accumulates(module: builtin.ModuleOp) -> int:
    """Return the multiply-accumulates of the forward convolutions and linear layers (``spike`` and ``lut``, else 0)."""
    return sum(_layer_work(op) for op in module.walk() if op.name in _LAYERS)


def run_level(module: builtin.ModuleOp, arguments: Mapping[Key, Array]) -> dict[Key, Array]:
    """Run the interpreter of the program's level; arguments and results are keyed by role and name, in device order."""
    interpret: Interpreter = load_object(INTERPRETERS[level_of(module)])  # type: ignore[assignment]
    entries, types = get_io(module), _argument_types(module)
    count = _argument_count(module)
    placed = [arguments[e.role, e.name] for e in entries[:count]]
    if types:
        placed = [value.reshape(_shape(kind)) for value, kind in zip(placed, types, strict=True)]
    results = interpret(module, placed)
    scale = _gradient_scale(module)
    named: dict[Key, Array] = {}
    for entry, value in zip(entries[count:], results, strict=True):
        unscaled = entry.role == "gradient" and scale != 1
        named[entry.role, entry.name] = np.divide(value, scale, dtype=np.float32) if unscaled else value
    return named


def random_arguments(module: builtin.ModuleOp, seed: int) -> dict[Key, Array]:
    """Return seeded random arguments of ``@main`` by role and name, in device order."""
    rng = np.random.default_rng(seed)
    types = _argument_types(module)
    entries = get_io(module)[: len(types)]
    labels = [_shape(t)[0] for e, t in zip(entries, types, strict=True) if e.role == "label"]
    limits = _Limits(_classes(module), max(labels, default=1))
    arguments = {(e.role, e.name): _random(rng, e, kind, limits) for e, kind in zip(entries, types, strict=True)}
    for index in _variances(module):
        key = entries[index].role, entries[index].name
        arguments[key] = np.abs(arguments[key]) + np.float32(0.5)
    return arguments


def _cancelling(module: builtin.ModuleOp) -> set[str]:
    """Return the names of biases in front of a batch norm, and of their buffers.

    In training their gradient is a sum that cancels: 0 but for the rounding of its terms.
    """
    entries = get_io(module)
    names: set[str] = set()
    for op in module.walk():
        if not isinstance(op, spike.BatchNormTrainOp):
            continue
        layer = op.x.owner
        while isinstance(layer, spike.PoolOp):
            layer = layer.x.owner
        if isinstance(layer, spike.ConvOp | spike.LinearOp) and isinstance(layer.bias, BlockArgument):
            names.add(entries[layer.bias.index].name)
    return names | {e.name for e in entries if e.role == "state" and parameter_of_state(e.name) in names}


def _variances(module: builtin.ModuleOp) -> list[int]:
    """Return which arguments of ``@main`` are running variances, which no program makes negative."""
    norms = (op for op in module.walk() if isinstance(op, spike.BatchNormOp | spike.BatchNormTrainOp))
    return sorted({op.variance.index for op in norms if isinstance(op.variance, BlockArgument)})


def _check_numbers(name: str, before: builtin.ModuleOp, after: builtin.ModuleOp, seed: int, tolerance: float) -> str:
    worst: Difference | None = None
    attempts = ATTEMPTS if tolerance else 1
    rounding = _cancelling(before)
    for attempt in range(attempts):
        arguments = random_arguments(before, seed + attempt)
        arguments |= {k: v for k, v in random_arguments(after, seed + attempt).items() if k not in arguments}
        results = run_level(before, arguments)
        if tolerance:
            results = {key: value for key, value in results.items() if key[1] not in rounding}
        worst = _largest_difference(results, run_level(after, arguments))
        if worst.relative <= tolerance:
            flips = f", {attempt} of {attempt + 1} inputs differed by more (flipped spikes)" if attempt else ""
            return (
                f"within {worst.relative:.1e} of the largest value" if worst.relative else "equal bit for bit"
            ) + flips
    assert worst is not None
    raise H2LearnError(
        f"pass {name} changes the numbers: {worst.role} {worst.name!r} differs by {worst.absolute:.3g} "
        f"({worst.relative:.3g} of its largest value, {tolerance:g} allowed)",
        hint="run the dump before and after the pass with the same input to find the operation",
    )


def _check_training_graph(name: str, before: builtin.ModuleOp, after: builtin.ModuleOp, seed: int) -> str:
    new = {type(op) for op in after.walk()} - {type(op) for op in before.walk()}
    changes = [text for kind, text in _TRAINING_ONLY.items() if kind in new]
    if changes:
        line = f"results not compared ({', '.join(changes)})"
    else:
        line = _check_numbers(name, before, after, seed, RELATIVE_TOLERANCE["f32"])
    if not any(entry.role == "gradient" for entry in get_io(after)):
        return line
    if reason := reason_against(after):
        return f"{line}; finite differences skipped: {reason}"
    return f"{line}; {_finite_differences(name, after, seed)}"


def _finite_differences(name: str, module: builtin.ModuleOp, seed: int) -> str:
    """Compare a few gradient entries of the smooth variant with central differences, in float64."""
    rng = np.random.default_rng(seed)
    entries, types = get_io(module), _argument_types(module)
    arguments = {
        key: value if key[0] == "state" else _jittered(rng, value)
        for key, value in random_arguments(module, seed).items()
    }
    results, scale = entries[len(types) :], float(_gradient_scale(module))

    def run(values: Mapping[Key, Array]) -> dict[Key, Array]:
        placed = [values[e.role, e.name].reshape(_shape(t)) for e, t in zip(entries, types, strict=False)]
        return dict(zip([(e.role, e.name) for e in results], run_smooth(module, placed), strict=True))

    def loss_with(parameter: str, index: int, change: float) -> float:
        moved = arguments["parameter", parameter].copy()
        moved.reshape(-1)[index] += change
        values = run(arguments | {("parameter", parameter): moved})
        return float(next(value for (role, _), value in values.items() if role == "loss"))

    gradients = {key[1]: value.reshape(-1) for key, value in run(arguments).items() if key[0] == "gradient"}
    checked = 0
    for parameter, gradient in gradients.items():
        for index in rng.choice(gradient.size, size=min(3, gradient.size), replace=False):
            ahead, behind = (loss_with(parameter, int(index), step) for step in (DIFFERENCE_STEP, -DIFFERENCE_STEP))
            slope, found = (ahead - behind) / (2 * DIFFERENCE_STEP), float(gradient[index]) / scale
            if abs(slope - found) > DIFFERENCE_TOLERANCE * max(1.0, abs(slope)):
                raise H2LearnError(
                    f"pass {name}: the gradient of {parameter!r} at {int(index)} is {found:.6g} in the smooth variant, "
                    f"finite differences give {slope:.6g}"
                )
            checked += 1
    return f"{checked} gradient entries of the smooth variant agree with finite differences"


def _jittered(rng: np.random.Generator, value: Array) -> Array:
    """Return float64 values moved off round numbers, where maxima tie and windows end; other types as they are."""
    return value.astype(np.float64) + rng.normal(0, 1e-2, value.shape) if value.dtype == np.float32 else value


def _largest_difference(before: Mapping[Key, Array], after: Mapping[Key, Array]) -> Difference:
    worst = Difference("", "", 0.0, 0.0)
    for key in before.keys() & after.keys():
        a, b = before[key].reshape(-1), after[key].reshape(-1)
        if a.size != b.size:
            raise H2LearnError(f"{key[0]} {key[1]!r} has {a.size} elements before the pass and {b.size} after it")
        if a.tobytes() == b.astype(a.dtype).tobytes():
            continue
        left, right = a.astype(np.float64), b.astype(np.float64)
        gap = np.where(np.isnan(left) & np.isnan(right), 0.0, np.abs(left - right))
        absolute = float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0))
        scale = float(np.nan_to_num(np.abs(left)).max(initial=0.0))
        relative = absolute / scale if scale else (np.inf if absolute else np.finfo(np.float64).tiny)
        if relative >= worst.relative:
            worst = Difference(*key, absolute, max(relative, np.finfo(np.float64).tiny))
    return worst


def _argument_types(module: builtin.ModuleOp) -> Sequence[Attribute]:
    for op in module.walk():
        if isinstance(op, func.FuncOp) and op.sym_name.data == "main":
            return op.function_type.inputs.data
    raise H2LearnError("the program has no function @main")


def _argument_count(module: builtin.ModuleOp) -> int:
    """Return how many entries of the io table are arguments; ``@main`` of an ``h2`` program has none of its own."""
    roles = [entry.role for entry in get_io(module)]
    return len(_argument_types(module)) or min(roles.index(role) for role in ("loss", "output") if role in roles)


def _shape(kind: Attribute) -> tuple[int, ...]:
    if isinstance(kind, builtin.TensorType):
        return tuple(kind.get_shape())
    shape = getattr(kind, "shape", None)
    if not isinstance(shape, tuple):
        raise H2LearnError(f"an argument of @main has the type {kind}, which has no shape")
    return tuple(int(size) for size in shape)


def _random(rng: np.random.Generator, entry: IoEntry, kind: Attribute, limits: _Limits) -> Array:
    shape = _shape(kind)
    match entry.role:
        case "label":
            return rng.integers(0, limits.classes, size=shape).astype(np.int32)
        case "scalars":
            return _scalars(shape, limits.samples)
        case "state":
            return np.zeros(shape, dtype=np.float32)
        case "parameter":
            fan_in = prod(shape[:-1]) or 1
            limit = max(2, round(128 / fan_in**0.5))
            return (rng.integers(-limit, limit + 1, size=shape) / 64).astype(np.float32)
        case _ if _is_binary(kind):
            return (rng.random(shape) < 0.4).astype(np.bool_)
        case _ if entry.bits:
            return np.ldexp(rng.integers(0, 1 << entry.bits, size=shape), -entry.bits).astype(np.float32)
        case _:
            return (rng.integers(0, 17, size=shape) / 16).astype(np.float32)


def _scalars(shape: tuple[int, ...], samples: int) -> Array:
    """Learning rate 1/8, every sample valid, step 0, seed 7, first sample 0."""
    raw = struct.pack("<fIIIQQ", 0.125, samples, 0, 0, 7, 0)
    return np.frombuffer(raw, dtype=np.int32).reshape(shape).copy()


def _classes(module: builtin.ModuleOp) -> int:
    for op in module.walk():
        if op.name in ("spike.loss", "sgrad.loss", "lut.loss"):
            return max(1, _shape(op.operands[0].type)[-1])
    return 2


def _moved(before: Sequence[IoEntry], after: Sequence[IoEntry]) -> str:
    """Return the name of a tensor that both programs have in different layouts, or an empty string."""
    layouts = {(e.role, e.name): (e.view, e.perm) for e in before}
    return next((e.name for e in after if layouts.get((e.role, e.name), (e.view, e.perm)) != (e.view, e.perm)), "")


def _gradient_scale(module: builtin.ModuleOp) -> np.float32:
    attribute = module.attributes.get(GRADIENT_SCALE_ATTRIBUTE)
    return np.float32(attribute.value.data if isinstance(attribute, builtin.FloatAttr) else 1)


def _is_binary(kind: Attribute) -> bool:
    return isinstance(kind, builtin.TensorType) and kind.element_type == builtin.i1


def _layer_work(op: Operation) -> int:
    weight = _shape(op.operands[1].type)
    return prod(_shape(op.results[0].type)) * prod(weight[:-1])
