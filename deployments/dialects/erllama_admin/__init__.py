"""Our own API under `/erllama/v1`, for operators: stored prefixes, sessions, the state of models."""
