"""Compiled kernels: strict binary32 arithmetic in the order of ``docs/semantics.md``, no knowledge of instructions."""
