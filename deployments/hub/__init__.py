"""Models on demand: which of the hub's models are in memory where, and which wait."""
