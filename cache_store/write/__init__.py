"""Blocks accepted, staged, published, and copied to the other tiers."""
