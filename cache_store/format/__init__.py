"""What is stored and how it is named: keys, blocks, and the file that holds one. Imported by every
other folder.
"""
