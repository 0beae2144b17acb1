"""The sgrad dialect: explicit adjoints of the spike ops."""
