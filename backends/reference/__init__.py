"""Plain NumPy arithmetic of the spike level and of the training graph."""
