"""Batches of episodes, played by worker processes that are allowed to fail."""
