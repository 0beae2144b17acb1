"""The compiler: a model in, a program out."""
