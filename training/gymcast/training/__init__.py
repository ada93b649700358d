"""Training: Stable-Baselines3 runs, checkpoints, sessions and storage."""
