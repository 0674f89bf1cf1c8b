"""One request's candidates: how many are written, which are dropped, and which one is picked."""
