"""What a source is, which files it consists of, and how their bytes are asked for: one file for
each kind of source.
"""
