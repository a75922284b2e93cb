"""Loops that must be understood: each way of writing one, over the classes of recurrence that have a parallel form."""

from __future__ import annotations

from . import drivers, styles_calls, styles_inputs, styles_layouts, styles_positions, styles_state, styles_steps
from .entry import joined

STYLES = joined(
    drivers.ENTRIES,
    styles_state.ENTRIES,
    styles_calls.ENTRIES,
    styles_steps.ENTRIES,
    styles_inputs.ENTRIES,
    styles_layouts.ENTRIES,
    styles_positions.ENTRIES,
)
