"""Training: losses, objectives, the loop and its checkpoints."""
