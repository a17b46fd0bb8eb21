"""The commands about single requests: why one was cold, and sending captured ones again."""
