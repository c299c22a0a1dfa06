"""Texts: tables of records, requests under test, training text, what must not meet, refusals."""
