"""A corpus of time loops: what `linrec.parallelize` must understand (styles) and must never get wrong (hostile)."""
