"""Tests of capture: from a running loop to a graph with scan nodes."""
