"""A step of `noisescope train` against TRL and DiffusionDPO."""
