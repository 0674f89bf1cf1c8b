"""Training a head on the device: collect candidates with their features, fit the head, calibrate it. Needs no torch."""
