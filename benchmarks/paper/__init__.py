"""The tables and figures of Adaptive-DPO (arXiv 2503.16921), one script each.

    python -m benchmarks.paper.table1 --scale tiny [--json FILE] [--out DIR]   # minutes, two cores
    python -m benchmarks.paper.table1 --scale full                             # commands, GPU hours

`tiny` runs the same pipeline on the embedded models and sample data and writes a table (Markdown
and JSON) and a picture; `full` prints the published settings as noisescope commands. What came
out, beside what is published: benchmarks/paper/README.md.
"""
