"""Responses that are kept, so that a later request may refer to them.

response  one of them, its ids and bytes    memory  those that this process remembers
store     where they are found              past    what they say to a request
routes    their endpoints
"""
