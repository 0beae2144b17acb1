"""The ``lut`` dialect: every op belongs to one engine, every format is explicit, every sum has its order.

The exact arithmetic is in ``docs/semantics.md``, the order of blocked sums in ``docs/levels.md``. An activation has the
shape ``[T, N, H, W, C]`` or, when it is the same at every time step, ``[N, H, W, C]``. Weights and their gradients are
``[kh*kw, C, K]``; weights are an fp32 parameter itself or its storage copy (fp16).
"""

from __future__ import annotations

from xdsl.ir import Dialect

from .attributes import (
    ConvGeometry,
    GeometryAttr,
    GradsType,
    InsideType,
    MaskType,
    Neuron,
    NeuronAttr,
    Planes,
    PlanesAttr,
    SpikesType,
    StoreType,
    Update,
    UpdateAttr,
    WinnersType,
    shape_of,
)
from .base import RUN_SCALARS, Block, LutOp, tensor
from .convolution_ops import (
    BeConvOp,
    BeGradOp,
    BeWgtOp,
    BiasGradOp,
    CastOp,
    ConvolutionOp,
    EmbedOp,
    ExtractOp,
    FeConvOp,
    ForwardConvolutionOp,
    WuOp,
)
from .gate import GateOp
from .map_ops import AddOp, ConcatOp, ConvertOp, DropoutOp, PoolOp, RngOp, SliceOp, TimeSumOp, UnpoolOp
from .neuron_ops import GradOp, LearnedRows, LifConstantsOp, LifOp, LiOp, NeuronRowGradOp, NeuronRowOp
from .normalisation import NormGradOp, NormOp, NormStatsOp, NormSumsOp
from .scan import DelayOp, ScanOp, YieldOp
from .training_ops import LossOp, OptOp, ReadoutOp, SpreadOp

OPERATIONS: tuple[type[LutOp], ...] = (
    FeConvOp,
    BeConvOp,
    LifOp,
    LifConstantsOp,
    NeuronRowOp,
    NeuronRowGradOp,
    LiOp,
    PoolOp,
    RngOp,
    DropoutOp,
    CastOp,
    ReadoutOp,
    SpreadOp,
    LossOp,
    GradOp,
    BeGradOp,
    UnpoolOp,
    AddOp,
    ConvertOp,
    ConcatOp,
    SliceOp,
    EmbedOp,
    ExtractOp,
    TimeSumOp,
    DelayOp,
    WuOp,
    BeWgtOp,
    BiasGradOp,
    OptOp,
    NormStatsOp,
    NormOp,
    NormSumsOp,
    NormGradOp,
)

Lut = Dialect(
    "lut",
    [*OPERATIONS, GateOp, ScanOp, YieldOp],
    [
        SpikesType,
        MaskType,
        StoreType,
        InsideType,
        GradsType,
        WinnersType,
        GeometryAttr,
        PlanesAttr,
        NeuronAttr,
        UpdateAttr,
    ],
)

__all__ = [
    "OPERATIONS",
    "RUN_SCALARS",
    "AddOp",
    "BeConvOp",
    "BeGradOp",
    "BeWgtOp",
    "BiasGradOp",
    "Block",
    "CastOp",
    "ConcatOp",
    "ConvGeometry",
    "ConvertOp",
    "ConvolutionOp",
    "DelayOp",
    "DropoutOp",
    "EmbedOp",
    "ExtractOp",
    "FeConvOp",
    "ForwardConvolutionOp",
    "GateOp",
    "GeometryAttr",
    "GradOp",
    "GradsType",
    "InsideType",
    "LearnedRows",
    "LiOp",
    "LifConstantsOp",
    "LifOp",
    "LossOp",
    "Lut",
    "LutOp",
    "MaskType",
    "Neuron",
    "NeuronAttr",
    "NeuronRowGradOp",
    "NeuronRowOp",
    "NormGradOp",
    "NormOp",
    "NormStatsOp",
    "NormSumsOp",
    "OptOp",
    "Planes",
    "PlanesAttr",
    "PoolOp",
    "ReadoutOp",
    "RngOp",
    "ScanOp",
    "SliceOp",
    "SpikesType",
    "SpreadOp",
    "StoreType",
    "TimeSumOp",
    "UnpoolOp",
    "Update",
    "UpdateAttr",
    "WinnersType",
    "WuOp",
    "YieldOp",
    "shape_of",
    "tensor",
]
