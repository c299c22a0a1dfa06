"""Speed: each `python -m benchmarks.NAME` measures one thing and prints a table."""
