"""Files on disk: atomic writes, checksums, caches, run directories, SQL over a run, the workspace.

Knows nothing of models or labels. May import only `errors`, `pairs` and `progress`; every other
folder may import it. No torch.
"""
