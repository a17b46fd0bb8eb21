"""What the text of a reply must follow, and how a sequence is held to it (llguidance)."""
