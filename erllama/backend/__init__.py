"""The contract between the engine and whoever computes, and what the next decode computes."""
