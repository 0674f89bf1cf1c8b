"""Decided between two steps: which candidates are dropped, how many begin, and when a pick ends."""
