"""Memory is released before anything is killed for want of it: the scheduler, its policy, and the
replicas' side.

For others: `messages`, `replica.ReplicaMemory` and `sources` in a replica,
`service.MemoryScheduler` for the graph.
"""
