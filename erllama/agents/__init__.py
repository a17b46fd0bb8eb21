"""Coding agents of other makers: what each must be told to work with a server of ours."""
