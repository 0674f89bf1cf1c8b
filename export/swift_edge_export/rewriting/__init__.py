"""Exact rewrites of a traced graph."""
