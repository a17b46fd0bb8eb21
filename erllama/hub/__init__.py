"""Models by name: where they come from, how they are fetched, and what lies on this machine's disk."""
