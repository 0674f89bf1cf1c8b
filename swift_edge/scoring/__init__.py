"""What candidates are worth: heads, running scores, and their calibration."""
