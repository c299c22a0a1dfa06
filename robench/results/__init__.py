"""Results: cells on disk, verdicts, rates, and the tables made of them. Needs no torch."""
