"""Wire formats: pure mappings between an HTTP dialect and the requests and events of `erllama.request`. No ray, no FastAPI, no I/O."""
