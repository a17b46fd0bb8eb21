"""Chat templates, how families write tool calls and reasoning, and transcripts: replies that come
back as the ids that were sampled.
"""
