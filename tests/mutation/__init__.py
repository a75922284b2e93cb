"""Breaks linrec one rule at a time, and asks which test says so."""
