"""Pages and pictures that are made from the code and from what it does: nothing of them is written
twice. `hooks.py` makes the pages when the documentation is built; `pictures.py` and
`screenshots/` are run by hand.
"""
