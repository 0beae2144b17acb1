"""The ``h2`` dialect: machine instructions as ops."""

from .ops import (
    H2,
    OPS,
    FieldsAttr,
    InstructionOp,
    TensorSymbol,
    build,
    configure,
    fork,
    get_io_symbols,
    get_symbols,
    program_module,
    program_ops,
    set_symbols,
    verify_program,
)

__all__ = [
    "H2",
    "OPS",
    "FieldsAttr",
    "InstructionOp",
    "TensorSymbol",
    "build",
    "configure",
    "fork",
    "get_io_symbols",
    "get_symbols",
    "program_module",
    "program_ops",
    "set_symbols",
    "verify_program",
]
