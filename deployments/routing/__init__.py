"""Which replica gets a request: the one that holds most of the prompt's KV, unless it is too busy."""
