"""llama.cpp's sequence state as rows and checkpoints, and back."""
