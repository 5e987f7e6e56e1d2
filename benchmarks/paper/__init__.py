"""The tables and figures of Adaptive-DPO, one script each.

    python -m benchmarks.paper.table1 --scale tiny [--json FILE] [--out DIR]   # minutes, two cores
    python -m benchmarks.paper.table1 --scale full                             # commands, GPU hours

`tiny` runs the same comparison on the embedded models and sample data and writes a table and a
picture. `full` prints the published settings as noisescope commands. Published cells and our
results: benchmarks/paper/README.md.
"""
