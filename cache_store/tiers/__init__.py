"""Tiers hold objects: local and remote ones, what guards each of them, and the stack of all."""
