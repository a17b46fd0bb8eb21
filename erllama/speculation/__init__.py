"""What may come next in a reply, and whether computing it ahead pays: drafts that sampling verifies."""
