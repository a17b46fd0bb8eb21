"""What brings erllama to other machines: images, manifests, and the check of a release."""
