"""For Ray jobs: models, status and batches by handle. Users import `cluster.Cluster` and
`batch.complete_batch`."""
