"""Where prefixes come from and go to: the context, the store, and the policy between them."""
