"""One request's state: lengths, state table, how its next token is drawn, which text is shown."""
