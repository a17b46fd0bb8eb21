"""The pictures of the documentation, made by the real page and the real command: `python -m
docs.generate.screenshots DIR`. Below them is the site of the tests: a real engine and a real store, whose model
writes what `speaker.py` has it say.
"""
