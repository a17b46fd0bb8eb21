"""erllama on Ray Serve: ingress, model replicas, typed clients. The only package that imports
ray.
"""
