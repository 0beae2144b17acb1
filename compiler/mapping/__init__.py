"""Tiling and allocation on plain integers; nothing here knows the IR."""
