"""What clients write into prompts that changes though nothing was said: replaced, moved or left, by
rules, so that a prompt begins as the last one did. Pure; nothing here knows HTTP or a model.
"""
