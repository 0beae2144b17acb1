"""From a model to its training graph."""

from .bptt import differentiate
from .rules import RULES
from .spec import (
    BPTT,
    SGD,
    SURROGATES,
    Adam,
    AdamW,
    ATan,
    Exponential,
    FastSigmoid,
    Gaussian,
    MSECount,
    Optimizer,
    Rectangular,
    Sigmoid,
    Surrogate,
    Train,
    Triangular,
)

__all__ = [
    "BPTT",
    "RULES",
    "SGD",
    "SURROGATES",
    "ATan",
    "Adam",
    "AdamW",
    "Exponential",
    "FastSigmoid",
    "Gaussian",
    "MSECount",
    "Optimizer",
    "Rectangular",
    "Sigmoid",
    "Surrogate",
    "Train",
    "Triangular",
    "differentiate",
]
