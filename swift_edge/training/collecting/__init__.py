"""Candidates for training: written or read, graded, and stored with what the model computed for them."""
