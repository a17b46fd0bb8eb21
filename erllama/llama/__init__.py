"""llama.cpp behind the contract of `erllama.backend`. The only folder that imports llama_cpp."""
