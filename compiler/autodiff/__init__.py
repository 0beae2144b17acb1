"""From a model to its training graph."""

from .bptt import differentiate
from .rules import RULES
from .spec import BPTT, SGD, Rectangular, Surrogate, Train, Triangular

__all__ = ["BPTT", "RULES", "SGD", "Rectangular", "Surrogate", "Train", "Triangular", "differentiate"]
