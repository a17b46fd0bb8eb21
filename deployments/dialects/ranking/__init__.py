"""Scores of pairs of texts: reranking in the forms of Jina, Cohere, vLLM, llama-server and TEI, and
vLLM's score API.
"""
