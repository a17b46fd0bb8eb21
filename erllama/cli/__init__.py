"""The command `erllama`."""
