"""Rows that live on the device that computes: keys and values, logits and hidden states in its memory."""
