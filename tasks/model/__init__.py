"""The model: its network and recipe, the fit, the calibration, and the saved file."""
