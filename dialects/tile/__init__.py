"""The tile level: loops over tiles, buffers in named memories, tokens."""
