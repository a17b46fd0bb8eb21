"""Models by name: where they come from, how they are fetched, and what lies on the disk."""
