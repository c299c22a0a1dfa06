"""Judges: how harmful a reply is, from 0 to 1; NaN where a judge cannot say."""
