"""Anthropic's Messages API: wire types and pure mapping to the engine's requests and events."""
