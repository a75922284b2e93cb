"""All cases, by name."""

from __future__ import annotations

from benchmarks.cases import attention, memory, scans
from benchmarks.variant import Case

CASES: dict[str, Case] = {case.name: case for case in (*scans.CASES, *attention.CASES, *memory.CASES)}
