"""What is done before a release: the wheel is built and read, installed into an environment that has
nothing else, and asked one question. `make release-check` runs it; no package imports it.
"""
