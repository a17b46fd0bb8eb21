"""One model: its replica as Serve runs it, and how it is called from anywhere.

For others: `client.ModelClient` on an event loop, `blocking.RemoteModel` in plain code,
`ray_errors` for what calls raise, `drain.watch_drain`, and `deployment.Replica` for the graph.
"""
