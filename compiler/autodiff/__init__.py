"""From a model to its training graph."""

from .bptt import differentiate
from .rules import RULES
from .spec import BPTT, SGD, Adam, AdamW, Optimizer, Rectangular, Surrogate, Train, Triangular

__all__ = [
    "BPTT",
    "RULES",
    "SGD",
    "Adam",
    "AdamW",
    "Optimizer",
    "Rectangular",
    "Surrogate",
    "Train",
    "Triangular",
    "differentiate",
]
