"""Evaluation where the truth is known: of reconstructions on disk, and of many samples of every case."""
