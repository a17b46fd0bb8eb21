"""Requests kept in files, for measuring with them later: opt-in, bounded, without keys, and without what
people wrote unless that is asked for. `erllama replay` sends them again.
"""
