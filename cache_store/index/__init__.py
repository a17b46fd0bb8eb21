"""What a process knows of all tiers: stored prefixes, who may be evicted, what changed. No I/O."""
