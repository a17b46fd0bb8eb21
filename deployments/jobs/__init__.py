"""For Ray jobs: models, status and batches by handle."""
