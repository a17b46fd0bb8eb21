"""Responses that are kept, so that a later request may refer to them.

store   where they are kept       past   what they say to a request       routes   their endpoints
"""
