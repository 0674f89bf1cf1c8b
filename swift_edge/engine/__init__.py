"""The engine: one batch of rows that all requests of a model share, and the session that computes them."""
