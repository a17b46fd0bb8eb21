"""Who may ask for what, and how much: API keys, the tenants that they stand for, and rate limits."""
