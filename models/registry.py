"""Every model of this folder as a `Sample`: a small instance, inputs for it, and what a compiler should make of it.

A test or a gallery loops over `SAMPLES` and needs to know nothing about any one model.
"""

from __future__ import annotations

from models.sample import Sample, shape_of
from models.tables import gated, matrix, scans, time_invariant

SAMPLES: tuple[Sample, ...] = time_invariant.SAMPLES + gated.SAMPLES + matrix.SAMPLES + scans.SAMPLES

__all__ = ["SAMPLES", "Sample", "shape_of"]
