"""Time and energy of inference and training steps on a GPU, by roofline: an estimate with its assumptions, no run.

Per layer and phase: ``t = max(2 * MACs / (eta * peak), bytes / (eta_b * bandwidth)) + calls * launch``. Everything that
is assumed and not published is a :class:`Range`, so that every result is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from h2learn.backends.h2learn.errors import H2LearnError

from .devices import Device, Range
from .shapes import NEURON, SYNAPSE, LayerShape

PHASES = ("forward", "backward", "weights", "optimizer")
PRECISIONS = ("fp32", "amp")

PAPER_SPEED_UP = Range(5.74, 10.20)
PAPER_ENERGY_SAVING = Range(5.25, 7.12)
PAPER_SOURCE = "H2Learn, arXiv 2107.11746, abstract: against a V100, its own measurement"


@dataclass(frozen=True)
class Style:
    """How a framework runs a spiking network.

    ``stepwise``: one call per layer and time step, else one per layer. A neuron costs ``forward_kernels`` and
    ``backward_kernels`` per call, each of which moves ``*_tensors`` times the elements of its output.
    """

    name: str
    description: str
    stepwise: bool
    forward_kernels: int
    backward_kernels: int
    forward_tensors: int
    backward_tensors: int
    optimizer_kernels: int


EAGER = Style(
    "eager",
    "plain PyTorch, step by step: LIF as 10 element-wise kernels per layer and step (forward and again backward), each"
    " reads two tensors and writes one; optimizer in 3 kernels per layer",
    True,
    10,
    10,
    3,
    3,
    3,
)
FUSED = Style(
    "fused",
    "multi-step modules (SpikingJelly with CuPy): layers see all steps at once, LIF is one kernel each way (forward"
    " reads the current, writes spikes and u; backward reads gradient, spikes, u, writes a gradient); optimizer in 1"
    " kernel per layer",
    False,
    1,
    1,
    3,
    4,
    1,
)
STYLES: dict[str, Style] = {style.name: style for style in (EAGER, FUSED)}


@dataclass(frozen=True)
class Assumptions:
    """Sustained shares of the peaks and the time of a kernel launch; the published peaks stand in ``Device``."""

    fp32_share: Range = field(default_factory=lambda: Range(0.4, 0.7))
    tensor_share: Range = field(default_factory=lambda: Range(0.2, 0.5))
    bandwidth_share: Range = field(default_factory=lambda: Range(0.80, 0.88))
    launch_seconds: Range = field(default_factory=lambda: Range(5e-6, 10e-6))

    def sentences(self) -> tuple[str, ...]:
        """Return every assumption with where it comes from."""
        return (
            f"sustained fp32: {_span(self.fp32_share)} of peak (ours, usual for cuDNN convolutions)",
            f"sustained tensor cores (amp): {_span(self.tensor_share)} of peak (ours: small channels, casts)",
            f"sustained bandwidth: {_span(self.bandwidth_share)} of peak (copies at 790 of 900 GB/s were measured on a"
            " PCIe V100, paranumal.com)",
            f"kernel launch: {self.launch_seconds.low * 1e6:g}-{self.launch_seconds.high * 1e6:g} us, not hidden"
            " (ours)",
            "spikes are dense tensors: no sparsity is used; every tensor between kernels goes through device memory,"
            " none stays in the L2 cache",
            "convolutions and linear layers: one kernel per call and phase, algorithm without extra workspace traffic",
            "no data loading, no host time beyond launches, no synchronisation",
        )


@dataclass(frozen=True)
class PhaseTime:
    """One layer in one phase: FLOPs (dense), bytes, kernel calls, seconds; ``limit`` at the middle of the ranges."""

    layer: str
    phase: str
    flops: float
    bytes: float
    launches: int
    seconds: Range
    limit: str


@dataclass(frozen=True)
class Baseline:
    """A network on a GPU: seconds and joules per step of the whole batch, with everything they rest on."""

    device: Device
    style: str
    precision: str
    training: bool
    rows: tuple[PhaseTime, ...]
    assumptions: tuple[str, ...]

    @property
    def seconds(self) -> Range:
        """Time of one step."""
        return _total(self.rows)

    @property
    def joules(self) -> Range:
        """Energy of one step: time times the power band, each end with its like."""
        time, power = self.seconds, self.device.power_w
        return Range(time.low * power.low, time.high * power.high)

    @property
    def flops(self) -> float:
        """Dense floating-point operations of one step."""
        return sum(row.flops for row in self.rows)

    @property
    def sustained_flops(self) -> Range:
        """Dense FLOP/s over the whole step."""
        time = self.seconds
        return Range(self.flops / time.high, self.flops / time.low) if time.low else Range(0, 0)

    def phase_seconds(self) -> dict[str, Range]:
        """Return the time of every phase."""
        return {phase: _total(row for row in self.rows if row.phase == phase) for phase in PHASES}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "device": asdict(self.device),
            "style": self.style,
            "precision": self.precision,
            "training": self.training,
            "seconds": asdict(self.seconds),
            "joules": asdict(self.joules),
            "flops": self.flops,
            "sustained_flops": asdict(self.sustained_flops),
            "phases": {phase: asdict(time) for phase, time in self.phase_seconds().items()},
            "layers": [asdict(row) for row in self.rows],
            "assumptions": list(self.assumptions),
        }


@dataclass(frozen=True)
class Comparison:
    """An accelerator step against a GPU step: how many times faster, and how many times less energy."""

    speed_up: Range
    energy_saving: Range


def baseline(
    layers: Sequence[LayerShape],
    device: Device,
    style: str = "eager",
    precision: str = "fp32",
    *,
    training: bool = True,
    assumptions: Assumptions | None = None,
) -> Baseline:
    """Estimate one step of a network on a GPU.

    ``style``: ``eager`` or ``fused``; ``precision``: ``fp32``, or ``amp`` (tensor cores, 2-byte activations and weight
    copies, fp32 master weights). Raises H2LearnError for another style or precision.
    """
    if style not in STYLES:
        raise H2LearnError(f"there is no style {style!r}", hint=f"known: {', '.join(STYLES)}")
    if precision not in PRECISIONS:
        raise H2LearnError(f"expected precision {' or '.join(PRECISIONS)}, found {precision!r}")
    rests_on = assumptions or Assumptions()
    clock = _Clock(device, precision, rests_on)
    rows = [row for layer in layers for row in _rows(layer, STYLES[style], precision, training, clock)]
    text = (
        f"roofline estimate, nothing was run: {STYLES[style].description}",
        *rests_on.sentences(),
        *device.sources,
        f"energy: time x {_span(device.power_w)} W; the board's limit of {device.tdp_w:g} W is not assumed",
    )
    return Baseline(device, style, precision, training, tuple(rows), text)


def compare(gpu: Baseline, seconds: float, joules: float) -> Comparison:
    """Set a step of an accelerator beside the same step on a GPU; raises ValueError unless both are positive."""
    if seconds <= 0 or joules <= 0:
        raise ValueError(f"expected positive time and energy, found {seconds} s and {joules} J")
    time, energy = gpu.seconds, gpu.joules
    return Comparison(Range(time.low / seconds, time.high / seconds), Range(energy.low / joules, energy.high / joules))


@dataclass(frozen=True)
class _Clock:
    """Turns FLOPs, bytes and launches into a row."""

    device: Device
    precision: str
    assumptions: Assumptions

    def row(self, layer: str, phase: str, flops: float, moved: float, launches: int) -> PhaseTime:
        given = self.assumptions
        tensor = self.precision == "amp"
        peak = self.device.tensor_flops if tensor else self.device.fp32_flops
        share = given.tensor_share if tensor else given.fp32_share
        ends = []
        for compute_share, memory_share, launch in (
            (share.high, given.bandwidth_share.high, given.launch_seconds.low),
            (share.low, given.bandwidth_share.low, given.launch_seconds.high),
        ):
            compute, memory = flops / (compute_share * peak), moved / (memory_share * self.device.bytes_per_second)
            ends.append(max(compute, memory) + launches * launch)
        parts = {
            "compute": flops / (share.middle * peak),
            "memory": moved / (given.bandwidth_share.middle * self.device.bytes_per_second),
            "launch": launches * given.launch_seconds.middle,
        }
        return PhaseTime(layer, phase, flops, moved, launches, Range(*ends), max(parts, key=lambda name: parts[name]))


def _rows(layer: LayerShape, style: Style, precision: str, training: bool, clock: _Clock) -> Iterable[PhaseTime]:
    item = 2 if precision == "amp" else 4
    calls = layer.steps if style.stepwise else 1
    if layer.kind == NEURON:
        forward = style.forward_kernels * style.forward_tensors * layer.outputs * item
        yield clock.row(layer.name, "forward", 0, forward, calls * style.forward_kernels)
        if training:
            backward = style.backward_kernels * style.backward_tensors * layer.outputs * item
            yield clock.row(layer.name, "backward", 0, backward, calls * style.backward_kernels)
        return
    moved = (layer.inputs + layer.outputs + calls * layer.weights) * item
    flops = 2.0 * layer.macs
    yield clock.row(layer.name, "forward", flops, moved, calls)
    if training and layer.input_gradient:
        yield clock.row(layer.name, "backward", flops, moved, calls)
    if training and layer.kind == SYNAPSE:
        yield clock.row(layer.name, "weights", flops, moved, calls)
        yield clock.row(layer.name, "optimizer", 0, layer.weights * _update_bytes(precision), style.optimizer_kernels)


def _update_bytes(precision: str) -> int:
    """SGD with momentum reads parameter, gradient and momentum, writes two of them; amp casts the parameter again."""
    return 5 * 4 + (4 + 2 if precision == "amp" else 0)


def _total(rows: Iterable[PhaseTime]) -> Range:
    total = Range(0.0, 0.0)
    for row in rows:
        total += row.seconds
    return total


def _span(found: Range) -> str:
    return f"{found.low:g}-{found.high:g}"
