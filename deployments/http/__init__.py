"""What every HTTP dialect shares: a reply written as it comes, errors, middleware, and the ports to
the rest.
"""
