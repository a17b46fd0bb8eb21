"""What every HTTP dialect shares: the seam that a dialect fills, bodies, streams, errors, middleware,
and the ports to the models.
"""
