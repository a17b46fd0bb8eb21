"""How model families write tool calls and reasoning in their replies: one file per family,
`base.py` is what all of them offer.
"""
