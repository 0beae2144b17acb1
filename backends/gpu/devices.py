"""GPUs of the analytic baseline: published figures with their sources, and what we assume about each."""

from __future__ import annotations

from dataclasses import dataclass

from h2learn.backends.h2learn.area import V100_MM2
from h2learn.backends.h2learn.errors import H2LearnError


@dataclass(frozen=True)
class Range:
    """A figure that is only known between two ends."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"expected 0 <= low <= high, found {self.low} and {self.high}")

    @property
    def middle(self) -> float:
        """The mean of the two ends."""
        return (self.low + self.high) / 2

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)


@dataclass(frozen=True)
class Device:
    """One GPU. Peaks in FLOP/s (a multiply-add is two), bandwidth in bytes/s, area in mm², power in W.

    ``power_w`` is the band assumed for spiking workloads, ``tdp_w`` the limit of the board; ``sources`` says where each
    figure comes from.
    """

    name: str
    node_nm: int
    area_mm2: float
    fp32_flops: float
    tensor_flops: float
    bytes_per_second: float
    tdp_w: float
    power_w: Range
    sources: tuple[str, ...]


V100 = Device(
    name="V100 (SXM2)",
    node_nm=12,
    area_mm2=V100_MM2,
    fp32_flops=15.7e12,
    tensor_flops=125e12,
    bytes_per_second=900e9,
    tdp_w=300.0,
    power_w=Range(100.0, 250.0),
    sources=(
        "815 mm2, 12 nm, 15.7 TFLOPS fp32, 125 TFLOPS tensor, 900 GB/s HBM2, 300 W TDP: NVIDIA Tesla V100 GPU"
        " architecture white paper WP-08608",
        "100-250 W while training: our assumption, because spiking workloads stay far below TDP (an A100 draws 81-184 W"
        " on them, see its entry)",
    ),
)
A100 = Device(
    name="A100 (SXM4, 40 GB)",
    node_nm=7,
    area_mm2=826.0,
    fp32_flops=19.5e12,
    tensor_flops=312e12,
    bytes_per_second=1555e9,
    tdp_w=400.0,
    power_w=Range(81.0, 184.0),
    sources=(
        "826 mm2, 7 nm, 19.5 TFLOPS fp32 (without TF32), 312 TFLOPS fp16 tensor, 1555 GB/s HBM2, 400 W TDP: NVIDIA A100"
        " tensor core GPU architecture white paper",
        "81-184 W measured on inference of spiking networks: Prosperity (Wei et al., HPCA 2025), its table of A100"
        " power; taken for training too, which is our assumption",
    ),
)
DEVICES: dict[str, Device] = {"v100": V100, "a100": A100}


def device_named(name: str) -> Device:
    """Return a device by its short name; raises H2LearnError when there is none."""
    if name not in DEVICES:
        raise H2LearnError(f"there is no GPU {name!r}", hint=f"known: {', '.join(DEVICES)}")
    return DEVICES[name]
