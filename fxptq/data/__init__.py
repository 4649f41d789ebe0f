"""Pictures as networks are given them: degraded, generated, gathered for calibration."""
