"""JSON Schema in the terms of llguidance. `schema.py` is what others import."""
