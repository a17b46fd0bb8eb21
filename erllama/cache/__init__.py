"""Where prefixes come from and where they go: the context, the store, and the policy between
them.
"""
