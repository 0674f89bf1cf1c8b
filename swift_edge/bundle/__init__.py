"""A bundle: a folder with everything that running a model takes. Read, checked and written."""
