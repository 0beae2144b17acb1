"""Milliseconds per kernel against PyTorch's dense convolution, and of one training step of a small network.

Run with ``python benchmarks/kernels.py``; PyTorch is optional.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn import isa
from h2learn.runtime import fast
from h2learn.runtime.operation import Memories, Operand, Operation, slot_bytes, spans

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

FAN, GBLK = 4, 64
ROOM = 1 << 28
LAYERS = [
    # c, k, size, images, [(spike density, gradient density)]
    (128, 256, 32, 8, [(0.05, 0.1), (0.1, 0.3), (0.2, 0.5)]),
    (512, 512, 8, 8, [(0.05, 0.1), (0.1, 0.3)]),
    (16, 32, 14, 64, [(0.1, 0.3)]),
]


class Bench:
    """One memory with room for the operands of any instruction, filled with random spikes, gradients and reals."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.memories = Memories({"A": 9 * ROOM})

    def operation(
        self, mnemonic: str, desc: dict[str, int | float | str], init: bool = True, **fields: int
    ) -> Operation:
        """Return an instruction whose operands lie apart; enumerated fields by name."""
        row = isa.BY_MNEMONIC[mnemonic]
        kind = next(f.of for f in row.fields if f.kind is isa.Kind.DESC)
        numbers: dict[str, int | float] = {}
        for field in isa.DESCRIPTOR_BY_NAME[kind].fields:
            value = desc.get(field.name, 0)
            numbers[field.name] = field.values.index(value) if isinstance(value, str) else value
        names = [f.name for f in row.fields if f.kind is isa.Kind.AREG]
        operands = {name: Operand("A", index * ROOM) for index, name in enumerate(names)}
        for name in ("pos", "neu", "tick"):
            if name in operands:
                operands[name] = Operand("A", 0)
        return Operation(0, mnemonic, operands, numbers, init, fields)

    def fill(self, op: Operation, name: str, data: npt.NDArray[np.generic]) -> None:
        """Put data where operand ``name`` lies."""
        start, end = spans(op)[name]
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self.memories.arrays["A"][start:end] = raw[: end - start]

    def bits(self, count: int, channels: int, density: float) -> npt.NDArray[np.uint8]:
        """Packed random bits ``[count][ceil(channels/8)]``."""
        return np.packbits(self.rng.random((count, channels)) < density, axis=1, bitorder="little")

    def slots(self, count: int, channels: int, density: float) -> npt.NDArray[np.uint8]:
        """Random gradient slots of ``count`` positions."""
        blocks = -(-channels // GBLK)
        size = slot_bytes(GBLK, 4)
        result = np.zeros((count * blocks, size), np.uint8)
        live = self.rng.random((count * blocks, 64)) < density
        live[:, min(channels, GBLK) :] = False
        result[:, :8] = np.packbits(live, axis=1, bitorder="little")
        result[:, 8:] = self.rng.standard_normal((count * blocks, GBLK), dtype=np.float32).view(np.uint8)
        return result

    def milliseconds(self, op: Operation, repeats: int = 5) -> float:
        """Best time of one execution."""
        return best(lambda: fast.execute(op, self.memories), repeats)


def best(call: Callable[[], object], repeats: int = 5) -> float:
    """Return the shortest of ``repeats`` calls in milliseconds, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def torch_times(c: int, k: int, size: int, images: int) -> tuple[float, float, float]:
    """Milliseconds of forward, input gradient and weight gradient of a dense 3x3 convolution."""
    x, w = torch.randn(images, c, size, size), torch.randn(k, c, 3, 3)
    g = torch.randn(images, k, size, size)
    return (
        best(lambda: torch.nn.functional.conv2d(x, w, padding=1)),
        best(lambda: torch.nn.grad.conv2d_input(x.shape, w, g, padding=1)),
        best(lambda: torch.nn.grad.conv2d_weight(x, w.shape, g, padding=1)),
    )


def convolutions(bench: Bench) -> None:
    """Print the three engines on the layers of the design table."""
    print(f"{'layer':28}{'s':>5}{'g':>5}{'fill':>8}{'FE':>9}{'BE':>9}{'WUE':>9}   torch: forward, input, weight")
    for c, k, size, images, densities in LAYERS:
        desc: dict[str, int | float | str] = {
            "imgs": images,
            "oh": size,
            "ow": size,
            "kh": 3,
            "kw": 3,
            "sh": 1,
            "sw": 1,
        }
        desc |= {"c": c, "k": k, "fan": FAN, "gblk": GBLK, "gh": size, "gw": size, "py": 1, "px": 1}
        dense = torch_times(c, k, size, images) if torch else ()
        for s, g in densities:
            fill, run = bench.operation("fe.fill", desc), bench.operation("fe.run", desc)
            back, weight = bench.operation("be.run", desc), bench.operation("wu.run", desc)
            positions = images * (size + 2) ** 2
            bench.fill(fill, "w", bench.rng.standard_normal(9 * c * k, dtype=np.float32))
            times = [bench.milliseconds(fill)]
            bench.fill(run, "s", bench.bits(positions, c, s))
            bench.fill(run, "lut", bench.rng.standard_normal(9 * (c // FAN) * 16 * k, dtype=np.float32))
            times.append(bench.milliseconds(run))
            bench.fill(back, "g", bench.slots(images * size * size, k, g))
            bench.fill(back, "w", bench.rng.standard_normal(9 * c * k, dtype=np.float32))
            times.append(bench.milliseconds(back))
            bench.fill(weight, "s", bench.bits(positions, c, s))
            bench.fill(weight, "g", bench.slots(images * size * size, k, g))
            times.append(bench.milliseconds(weight))
            name = f"{c}->{k} @{size}x{size}, {images}"
            print(f"{name:28}{s:5.2f}{g:5.1f}" + "".join(f"{t:9.2f}" for t in times), *(f"{t:9.1f}" for t in dense))


def training_step(bench: Bench, steps: int = 8, batch: int = 32) -> None:
    """Print the kernel time of one step of conv16-P-conv32-P-FC10 on 28x28 images, whole layers per instruction."""
    total = 0.0

    def add(
        label: str,
        mnemonic: str,
        desc: dict[str, int | float | str],
        operands: dict[str, npt.NDArray[np.generic]],
        times: int = 1,
        init: bool = True,
        **fields: int,
    ) -> None:
        nonlocal total
        op = bench.operation(mnemonic, desc, init, **fields)
        for name, data in operands.items():
            bench.fill(op, name, data)
        one = bench.milliseconds(op, 3)
        total += one * times
        print(f"  {label:24}{mnemonic:10}{times:3d} x {one:8.3f} ms = {one * times:8.2f} ms")

    def real(count: int) -> npt.NDArray[np.float32]:
        return bench.rng.standard_normal(count, dtype=np.float32)

    def conv(imgs: int, size: int, kernel: int, c: int, k: int) -> dict[str, int | float | str]:
        out = size if kernel == 3 else 1
        pad = 1 if kernel == 3 else 0
        return {
            **{"imgs": imgs, "oh": out, "ow": out, "kh": kernel, "kw": kernel, "sh": 1, "sw": 1, "c": c, "k": k},
            **{"fan": FAN, "gblk": GBLK, "gh": out, "gw": out, "py": pad, "px": pad},
        }

    frames = steps * batch
    print(f"one training step, T = {steps}, batch {batch}:")
    first = conv(batch, 28, 3, 1, 16)
    add("conv1", "be.fwd", first, {"x": bench.rng.random(batch * 900, dtype=np.float32), "w": real(144)})
    neuron: dict[str, int | float | str] = {"gblk": GBLK, "width": 0.5, "height": 1.0, "save_u": "yes", "save_m": "yes"}
    for index, (size, k) in enumerate(((28, 16), (14, 32), (1, 10))):
        n = batch * size * size
        lif = neuron | {"n": n, "k": k}
        par = np.stack([np.zeros(k), np.full(k, 0.9), np.full(k, 0.8), np.zeros(k)]).astype(np.float32)
        operands = {"acc": real(n * k), "us": real(n * k), "ss": bench.bits(n, k, 0.2), "par": par}
        add(f"neuron {index + 1}", "v.lif", lif, operands, steps, init=False)
        operands = {"gs": real(n * k), "u": real(n * k), "s": bench.bits(n, k, 0.2), "par": par, "gc": real(n * k) / 9}
        add(f"neuron {index + 1} back", "v.grad", lif, operands, steps, init=False)
    for index, (size, k) in enumerate(((28, 16), (14, 32))):
        half = size // 2
        pool: dict[str, int | float | str] = {
            "imgs": frames,
            "oh": half,
            "ow": half,
            "kh": 2,
            "kw": 2,
            "sh": 2,
            "sw": 2,
        }
        pool |= {"k": k, "kind": "max", "src": "bits", "dst": "bits"}
        add(f"pool {index + 1}", "v.pool", pool, {"src": bench.bits(frames * size * size, k, 0.15)})
        pool |= {"oh": size, "ow": size, "gh": half, "gw": half, "src": "f32", "dst": "f32"}
        add(f"pool {index + 1} back", "v.unpool", pool, {"src": real(frames * half * half * k)})
    for label, size, kernel, c, k in (("conv2", 14, 3, 16, 32), ("fc", 7, 7, 32, 10)):
        layer = conv(frames, size, kernel, c, k)
        taps, outputs = kernel * kernel, frames * (size * size if kernel == 3 else 1)
        spikes = bench.bits(frames * (size + 2) ** 2, c, 0.2)
        slots = bench.slots(outputs, k, 0.4)
        add(label, "fe.fill", layer, {"w": real(taps * c * k)})
        add(label, "fe.run", layer, {"s": spikes, "lut": real(taps * c * 4 * k)})
        back = layer | {"oh": size, "ow": size}
        add(f"{label} back", "be.run", back, {"g": slots, "w": real(taps * c * k)}, mode=3)
        add(f"{label} weights", "wu.run", layer, {"s": spikes, "g": slots})
        add(f"{label} bias", "v.reduce", {"n": outputs, "k": k, "kind": "bias", "gblk": GBLK}, {"src": slots})
    sums: dict[str, int | float | str] = {"n": batch * 784, "k": 16, "steps": steps, "kind": "tsum", "gblk": GBLK}
    add("conv1 time sum", "v.reduce", sums, {"src": bench.slots(frames * 784, 16, 0.4)})
    slots = bench.slots(batch * 784, 16, 0.8)
    add("conv1 weights", "be.wgt", first, {"x": bench.rng.random(batch * 900, dtype=np.float32), "g": slots})
    add("optimizer", "v.opt", {"n": 20490, "kind": "sgd", "momentum": 0.9, "scale": 1.0}, {})
    print(f"  total {total:.1f} ms")


def main() -> None:
    """Print both tables."""
    if torch:
        torch.set_num_threads(2)
    bench = Bench()
    convolutions(bench)
    training_step(bench)


if __name__ == "__main__":
    main()
