"""Training: what is trained (tuners), how (trainer, settings, checkpoints), and folding an adapter into its model."""
