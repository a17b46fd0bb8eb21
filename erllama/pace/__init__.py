"""How long a decode may take beside running streams, and how many threads compute it."""
