"""Judging results where the truth is known: reconstructions on disk, and many samples of every case."""
