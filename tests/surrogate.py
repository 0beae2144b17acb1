"""The spike function of the references in PyTorch: a step with a surrogate derivative."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest


def fire(distance: Any, width: float = 0.5, height: float = 1.0, *, touching: bool = False, slope: str = "box") -> Any:
    """Return spikes where ``distance`` to the threshold is above 0, or not below it where ``touching`` fires.

    The derivative is ``height`` within ``width`` of the threshold, for the slope ``tent`` falling linearly to 0 there.
    """
    return _function().apply(distance, width, height, touching, slope)


@cache
def _function() -> Any:
    torch = pytest.importorskip("torch", reason="compares with PyTorch autograd")

    class Spike(torch.autograd.Function):  # type: ignore[misc, name-defined]
        @staticmethod
        def forward(ctx: Any, distance: Any, width: float, height: float, touching: bool, slope: str) -> Any:
            near = distance.abs()
            falling = torch.clamp(1 - near / width, min=0)
            ctx.save_for_backward(height * ((near < width).to(distance.dtype) if slope == "box" else falling))
            return (distance >= 0 if touching else distance > 0).to(distance.dtype)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            return gradient * ctx.saved_tensors[0], None, None, None, None

    return Spike
