"""GGUF files read and checked before llama.cpp sees them."""
