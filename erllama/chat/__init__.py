"""Chat templates, tool calls in text, and transcripts that come back as the ids that were sampled."""
