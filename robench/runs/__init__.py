"""Runs: the question, its plan, and the straight line from a cell to its rows."""
