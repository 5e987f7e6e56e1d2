"""Training: objectives, the one training loop, LoRA, and the policy that `noisescope train` makes.

`replicas` uses the loop and LoRA for its short runs; `policy/` is the full training. May import
`models`, `scoring`, `datasets` and below.
"""
