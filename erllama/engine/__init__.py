"""The engine of one model: one thread, many sequences, one decode per step."""
