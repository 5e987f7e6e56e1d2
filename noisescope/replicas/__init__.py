"""Replicas: M small fits of one dataset, and the margins of every pair under each of them.

Log-linear heads on cached features (`head`, `solver`, `prior`) are the default; LoRA replicas
(`lora_text`, `lora_image`) train adapters; `gather*` write the margins of each kind into the run.
May import `training`, `models`, `scoring` and below.
"""
