"""From a running module to a graph with scan nodes: discover, trace, normalise, re-roll, generalise."""
