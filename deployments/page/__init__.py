"""The web page at `/`: a chat, and a live view of the cluster. Its files are plain HTML, CSS and ES
modules in `static/`, served as they lie there; it speaks to the server through the public API alone.
"""
