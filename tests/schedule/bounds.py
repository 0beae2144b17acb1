"""Lower bounds of a training step's cycles, from the network, the machine and what a run counted.

Nothing here knows of the mapper: no tiles, groups, streams or stages. Work of the look-up engines and the least DRAM
traffic follow from the layers' shapes; work of the multipliers from the products that the bitmaps of the run left, at
the efficiency that they allow (a position issues its live outputs in rows of a quarter of a processing element's
multipliers, and all processing elements are equally busy).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from h2learn.backends.gpu import layers_of
from h2learn.backends.h2learn.machine import Machine
from h2learn.compiler.model import Model
from h2learn.dialects.spike.ops import EncodeOp
from h2learn.runtime.counters import RunReport

MULTIPLIER_INSTRUCTIONS = ("be.run", "be.fwd", "be.wgt")
OPTIMIZER_BYTES = {"f32": 16, "f16": 18}
"""Of SGD with momentum, per parameter: master weight and momentum there and back, the copy in storage type."""
WRITTEN_BYTES = {"f32": 8, "f16": 10}
STORED_BYTES = {"f32": 4, "f16": 2}


@dataclass(frozen=True)
class Layer:
    """Dense multiply-accumulates of one pass over the whole batch, and parameters.

    ``real``: its inputs are no spikes, so that it runs on the multipliers.
    """

    macs: int
    parameters: int
    real: bool


@dataclass(frozen=True)
class Bounds:
    """Cycles below which a step cannot be: ``busy`` and ``work`` by resource, ``pipeline`` with ways in and tails."""

    busy: dict[str, float]
    work: dict[str, float]
    pipeline: dict[str, float]

    def ratios(self, cycles: int) -> dict[str, float]:
        """Return cycles over each bound."""
        return {name: cycles / max(getattr(self, name).values()) for name in ("busy", "work", "pipeline")}


def layers_with_weights(model: Model, batch: int) -> list[Layer]:
    """Return the layers that have weights; one that sees a repeated image computes the current of one time step."""
    module = model.with_batch(batch).module
    repeated = any(isinstance(op, EncodeOp) and op.kind.data == "direct" for op in module.walk())
    found = []
    for layer in layers_of(module):
        if layer.macs:
            real = repeated and not layer.input_gradient
            found.append(Layer(layer.macs // (layer.steps if real else 1), layer.weights, real))
    return found


def bounds(layers: Sequence[Layer], batch: int, machine: Machine, report: RunReport, dtype: str = "f16") -> Bounds:
    """Return the bounds of a step of ``batch`` samples whose run is ``report``; the optimizer is SGD with momentum."""
    looked_up = sum(layer.macs for layer in layers if not layer.real)
    multiplied = report.work.get("be.fwd", {}).get("dense_products", 0)
    multiplied -= sum(layer.macs for layer in layers if layer.real)  # spikes that the run gave to the multipliers
    parameters = sum(layer.parameters for layer in layers)
    forward, update, rate = machine.forward, machine.weight_update, machine.dram.bytes_per_cycle
    issued = _issue_cycles(report, machine)
    work = {
        "FE": (looked_up - max(0, multiplied)) / (forward.lanes * forward.fan_in),
        "WUE": looked_up / (update.lanes_k * update.lanes_c * update.fan_in),
        "BE": sum(issued.values()),
        "DRAM": parameters * (OPTIMIZER_BYTES[dtype] + STORED_BYTES[dtype]) / rate,
    }
    # One sample must be through all layers before anything flows back, and comes back through all of them.
    way_in = work["FE"] / batch
    way_back = issued["be.run"] / batch
    on_chip = sum(machine.memory_bytes(memory) for memory in "WSUGMAL")
    stepping = max(WRITTEN_BYTES[dtype] * parameters, OPTIMIZER_BYTES[dtype] * parameters - on_chip) / rate
    pipeline = {
        "FE": work["FE"] + way_back,
        "WUE": way_in + work["WUE"],
        "BE": way_in + issued["be.run"] + issued["be.wgt"],
        "DRAM": work["FE"] + stepping,  # a parameter's gradient is whole when the last sample has come back
    }
    return Bounds({name: float(cycles) for name, cycles in report.busy.items()}, work, pipeline)


def efficiency(items: Iterable[Mapping[str, int]], multipliers: int) -> float:
    """Return products over what the multipliers could have done while the busiest processing element worked."""
    counts = list(items)
    cycles = sum(count.get("pe_cycles", 0) for count in counts)
    return sum(count.get("products", 0) for count in counts) / (cycles * multipliers) if cycles else 0.0


def _issue_cycles(report: RunReport, machine: Machine) -> dict[str, float]:
    """Return the cycles of the multipliers by instruction if all lanes of processing elements were equally busy."""
    lanes = 4 * machine.backward.elements
    return {name: report.work.get(name, {}).get("issue_cycles", 0) / lanes for name in MULTIPLIER_INSTRUCTIONS}
