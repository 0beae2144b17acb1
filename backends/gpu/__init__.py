"""Analytic GPU baseline: what the same step costs on a GPU, by a roofline estimate. Nothing runs here."""

from .devices import A100, DEVICES, V100, Device, Range, device_named
from .roofline import (
    PAPER_ENERGY_SAVING,
    PAPER_SOURCE,
    PAPER_SPEED_UP,
    Assumptions,
    Baseline,
    Comparison,
    PhaseTime,
    baseline,
    compare,
)
from .shapes import LayerShape, layers_of

__all__ = [
    "A100",
    "DEVICES",
    "PAPER_ENERGY_SAVING",
    "PAPER_SOURCE",
    "PAPER_SPEED_UP",
    "V100",
    "Assumptions",
    "Baseline",
    "Comparison",
    "Device",
    "LayerShape",
    "PhaseTime",
    "Range",
    "baseline",
    "compare",
    "device_named",
    "layers_of",
]
