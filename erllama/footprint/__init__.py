"""How much memory a model takes, from the headers of its files alone."""
