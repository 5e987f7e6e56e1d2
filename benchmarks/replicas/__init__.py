"""LoRA replicas against TRL DPO runs: speed, memory and what they find."""
