"""Small objects of an application that lie beside the KV blocks, in a tier of the same store.

document  one of them as a file: its name and its bytes
sweep     which of them go: those that are too old, and the oldest beyond a budget
store     what keeps them: puts in the background, reads and deletions under a deadline
"""
