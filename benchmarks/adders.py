"""The forward engine by look-ups, by adders and by event-driven adders, on one layer at chosen densities of spikes.

All four run on the simulator with the same lanes: fan-in 1 makes a look-up an addition of one weight, and with
``skip_zero_patterns`` an addition takes place for every spike and nothing else (an event-driven adder). Spikes are
independent draws (Bernoulli encoding of a constant), which is the best case for the balance of lanes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import h2learn
from h2learn.backends.h2learn.machine import Machine, load_machine
from h2learn.compiler.frontends.dsl.load import parse_snn
from h2learn.runtime.energy import energy_of

DENSITIES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
STEPS, BATCH, CHANNELS, SIZE, KERNEL = 4, 4, 64, 16, 3
METHODS = (
    ("adders", 1, False),
    ("look-ups", 4, False),
    ("event-driven adders", 1, True),
    ("look-ups, skipping", 4, True),
)
"""Name, fan-in, whether zero patterns are skipped."""

NETWORK = """
network layer
input x: {channels} x {size} x {size}
time steps: {steps}
encode bernoulli
neuron: lif(decay 0.5, threshold 1.0, reset hard, spike at u > threshold)
conv c1: {channels} channels, kernel {kernel} x {kernel}, padding 1
lif n1
pool p1: avg {size} x {size}
flatten
linear f1: 10 features
li integrate: decay 0.5
readout membrane mean
init: normal gain 1.0 seed 0
"""


@dataclass(frozen=True)
class Layer:
    """The layer's forward pass: cycles of lanes and builder, synapses (those without a spike, too), energy in pJ.

    ``spikes``: the density that was drawn.
    """

    cycles: int
    builder: int
    synapses: int
    picojoules: float
    spikes: float
    lanes: int

    @property
    def rate(self) -> float:
        """Synapses that a lane serves in a cycle."""
        return self.synapses / (self.cycles * self.lanes)


def measure(density: float, fan: int, machine: Machine, channels: int = CHANNELS, size: int = SIZE) -> Layer:
    """Simulate one convolution whose inputs spike with probability ``density``, fp16."""
    text = NETWORK.format(channels=channels, size=size, steps=STEPS, kernel=KERNEL)
    model = parse_snn(text)
    program = h2learn.compile(model, arch=machine, batch=BATCH, precision="fp16", mapping=f"fan={fan}")
    inputs = {"x": np.full((BATCH, channels, size, size), density, np.float32)}
    report = program.run(inputs).report
    layer = next(item.source for item in report.by_pc if item.mnemonic == "fe.run" and item.executed)
    parts = [item for item in report.by_pc if item.source == layer and item.mnemonic in ("fe.fill", "fe.run")]
    work: dict[str, dict[str, int]] = {}
    read: dict[str, int] = {}
    written: dict[str, int] = {}
    for item in parts:
        for total, more in ((work.setdefault(item.mnemonic, {}), item.work), (read, item.bytes_read)):
            for name, count in more.items():
                total[name] = total.get(name, 0) + count
        for name, count in item.bytes_written.items():
            written[name] = written.get(name, 0) + count
    counts = work["fe.run"]
    return Layer(
        cycles=sum(item.busy for item in parts if item.mnemonic == "fe.run"),
        builder=sum(item.busy for item in parts if item.mnemonic == "fe.fill"),
        synapses=counts["dense_products"],
        picojoules=energy_of(machine, 2, work, read, written).total_pj,
        spikes=counts["spikes"] / counts["inputs"],
        lanes=machine.forward.lanes,
    )


def section(skipping: str, plain: str) -> list[str]:
    """Return the section of the page: rates and energies of the four methods over the density of spikes."""
    machines = {False: load_machine(plain), True: load_machine(skipping)}
    lines = [
        f"Forward engine of `{plain}` on one {KERNEL} x {KERNEL} convolution, {CHANNELS} to {CHANNELS} channels,",
        f"{SIZE} x {SIZE} positions, T = {STEPS}, batch {BATCH}, fp16, simulated; spikes are drawn independently at",
        "density s. Rate: synapses (with and without a spike) per lane and cycle; pJ: energy of engine, tables and",
        "on-chip operands per synapse.",
        "",
        "| s | " + " | ".join(f"{name}: rate | pJ" for name, _, _ in METHODS) + " |",
        "|---|" + "---|---|" * len(METHODS),
    ]
    rates: dict[float, dict[str, float]] = {}
    for density in DENSITIES:
        cells = []
        for name, fan, skips in METHODS:
            one = measure(density, fan, machines[skips])
            rates.setdefault(density, {})[name] = one.rate
            cells.append(f"{one.rate:.2f} | {one.picojoules / one.synapses:.3f}")
        lines.append(f"| {density:g} | " + " | ".join(cells) + " |")
    return [*lines, "", *_verdict(rates)]


def _verdict(rates: dict[float, dict[str, float]]) -> list[str]:
    losing = [s for s, row in rates.items() if row["event-driven adders"] > row["look-ups"]]
    winning = [s for s in rates if s not in losing]
    behind = [s for s, row in rates.items() if row["event-driven adders"] > row["look-ups, skipping"]]
    skipping = f"are behind them at s = {_listed(behind)}" if behind else "are ahead of them at all of these densities"
    return [
        f"**Where the look-up loses**: at s = {_listed(losing)} event-driven adders serve more synapses per lane and",
        f"cycle than look-ups of fan-in 4 do; at s = {_listed(winning)} fewer. Look-ups that skip zero patterns",
        f"{skipping}. Look-ups without skipping do not depend on the spikes: their rate is the fan-in. Event-driven",
        "rates are a little above 1/s, because the zeros around a map count as synapses.",
        "",
        "Assumed: the same number of lanes everywhere, each with one fp32 adder. Tables are built beside the look-ups",
        "and cost no lane cycles, but energy and area (see *tables* and *FE* below), which adders need not spend.",
        "Lanes that skip wait for no table bank and no port, and their search costs neither energy nor area; an",
        "event-driven machine pays for queues or crossbars in front of its adders, which are not counted either. Both",
        "are therefore best cases; look-ups without skipping are not.",
    ]


def _listed(densities: list[float]) -> str:
    return ", ".join(f"{s:g}" for s in densities) or "none of these"
