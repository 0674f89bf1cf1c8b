"""Whole numbers as callers give them: Python's own or NumPy's, and never a truth value. Knows no option by name."""

import numpy as np


def is_whole(value: object, least: int) -> bool:
    """Whether `value` is an integer of at least `least`."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= least)
