"""The HTTP front: the deployment, its app, and prompts that become tokens."""
