"""One request's state: its lengths, its state table, how its next token is drawn, which text may be
shown.
"""
