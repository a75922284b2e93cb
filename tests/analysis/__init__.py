"""Tests of the analysis, with step graphs built for them by `tests.analysis.graphs`."""
