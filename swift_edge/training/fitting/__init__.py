"""Fitting a head to a store, and calibrating it."""
