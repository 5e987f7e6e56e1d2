"""Training on noisy labels: what an audit wins back. Text, images, LoRA, and the result tables."""
