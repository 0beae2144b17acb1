"""ONNX models as frameworks export them: the time loop is found, proven and rolled back into one dimension."""

from .load import load_onnx

__all__ = ["load_onnx"]
