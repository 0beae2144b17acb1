"""The ``.snn`` text format."""

from .load import load_snn, parse_snn

__all__ = ["load_snn", "parse_snn"]
