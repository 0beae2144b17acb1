"""The ``lut`` dialect: every op belongs to one engine, every format is explicit, every sum has its order."""

from __future__ import annotations

from xdsl.ir import Dialect

from .attributes import (
    ConvGeometry,
    GeometryAttr,
    GradsType,
    MaskType,
    Neuron,
    NeuronAttr,
    SpikesType,
    StoreType,
    WinnersType,
    shape_of,
)
from .ops import (
    BeConvOp,
    BeGradOp,
    BeWgtOp,
    BiasGradOp,
    CastOp,
    FeConvOp,
    GradOp,
    LifOp,
    LiOp,
    LossOp,
    LutOp,
    PoolOp,
    ReadoutOp,
    RngOp,
    SgdOp,
    TimeSumOp,
    UnpoolOp,
    WuOp,
)

OPERATIONS: tuple[type[LutOp], ...] = (
    FeConvOp,
    BeConvOp,
    LifOp,
    LiOp,
    PoolOp,
    RngOp,
    CastOp,
    ReadoutOp,
    LossOp,
    GradOp,
    BeGradOp,
    UnpoolOp,
    TimeSumOp,
    WuOp,
    BeWgtOp,
    BiasGradOp,
    SgdOp,
)

Lut = Dialect(
    "lut",
    list(OPERATIONS),
    [SpikesType, MaskType, StoreType, GradsType, WinnersType, GeometryAttr, NeuronAttr],
)

__all__ = [
    "OPERATIONS",
    "BeConvOp",
    "BeGradOp",
    "BeWgtOp",
    "BiasGradOp",
    "CastOp",
    "ConvGeometry",
    "FeConvOp",
    "GeometryAttr",
    "GradOp",
    "GradsType",
    "LiOp",
    "LifOp",
    "LossOp",
    "Lut",
    "LutOp",
    "MaskType",
    "Neuron",
    "NeuronAttr",
    "PoolOp",
    "ReadoutOp",
    "RngOp",
    "SgdOp",
    "SpikesType",
    "StoreType",
    "TimeSumOp",
    "UnpoolOp",
    "WinnersType",
    "WuOp",
    "shape_of",
]
