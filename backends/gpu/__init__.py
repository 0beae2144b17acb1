"""Analytic GPU baseline: what the same training step costs on a GPU, by a roofline estimate. Nothing runs here."""
