"""Grammars of replies: GBNF, JSON schema, regular expressions."""
