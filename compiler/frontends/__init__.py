"""Frontends: model files to ``spike`` modules."""
