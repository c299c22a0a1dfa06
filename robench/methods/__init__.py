"""Methods: where they come from, how they describe themselves, and the contract they keep."""
