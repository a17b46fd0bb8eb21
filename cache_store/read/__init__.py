"""Stored prefixes found, fetched and verified."""
