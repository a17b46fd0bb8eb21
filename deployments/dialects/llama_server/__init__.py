"""The routes of llama.cpp's own server beside OpenAI's, with what vLLM and LM Studio add to them."""
