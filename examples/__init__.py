"""Runnable examples: `python examples/NAME.py --help`."""
