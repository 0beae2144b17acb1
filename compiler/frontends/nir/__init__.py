"""NIR graphs: files and graphs of the package ``nir`` to models, and back."""

from .export import nir_file, to_nir
from .load import from_nir, load_nir
from .options import NirOptions

__all__ = ["NirOptions", "from_nir", "load_nir", "nir_file", "to_nir"]
