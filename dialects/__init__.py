"""The intermediate languages, one package each."""
