"""Answers and conversations: `run` and `chat`, with a server or in this process."""
