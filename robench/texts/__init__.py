"""Texts: tables of records, requests under test, training text, overlap checks, refusals."""
