"""The one local training loop (K clients wide), losses, inference."""
