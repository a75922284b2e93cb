"""Tests of the passes: the graph after each, for small loops."""
