"""A store: collected candidates with labels and features, in a folder that survives interruptions."""
