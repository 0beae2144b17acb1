"""Models to NIR graphs."""
