"""What one process knows of all tiers: the longest stored prefix, who may be evicted, what changed.
No I/O but its snapshot.
"""
