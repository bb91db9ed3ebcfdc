"""Training, calibration and judging of driver models."""
