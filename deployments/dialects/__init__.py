"""HTTP APIs, a folder each: wire types, pure mapping to the engine's requests and events, replies,
routes. No ray.
"""
