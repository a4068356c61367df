"""Evaluation where the truth is known: reconstructions on disk, many samples of every case, calibration."""
