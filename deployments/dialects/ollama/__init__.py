"""Ollama's API: wire types, pure mapping to the engine's requests and events, and its routes."""
