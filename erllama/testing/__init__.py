"""For tests and benchmarks: a deterministic backend without llama.cpp, and GGUF files with random
weights.
"""
