"""Tests of the lowerings: each algorithm in place of the loop that it stands for."""
