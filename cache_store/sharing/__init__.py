"""How processes share tiers without a service between them: claims, identities, gossip, upkeep."""
