"""Which replica gets a request: the one that holds most of the prompt's KV, unless it is too busy.

For others: `stats.RoutingStats` in a replica, `router.router_config` for the graph.
"""
