"""Loops that must never be miscompiled: what is asked of them is the loop's own values, gradients and effects,
whatever the report says.
"""

from __future__ import annotations

from . import (
    hostile_affine,
    hostile_changes,
    hostile_effects,
    hostile_gradients,
    hostile_numbers,
    hostile_states,
    hostile_time,
    hostile_walks,
)
from .entry import joined

HOSTILE = joined(
    hostile_states.ENTRIES,
    hostile_affine.ENTRIES,
    hostile_time.ENTRIES,
    hostile_walks.ENTRIES,
    hostile_gradients.ENTRIES,
    hostile_numbers.ENTRIES,
    hostile_effects.ENTRIES,
    hostile_changes.ENTRIES,
)
