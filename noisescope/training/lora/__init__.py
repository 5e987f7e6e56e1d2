"""LoRA: adapters, models split at the first adapted block, cached activations, PEFT files."""
