"""Prompts that are put together from texts and special tokens, without a chat template."""
