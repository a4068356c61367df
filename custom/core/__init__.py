"""Units, the arithmetic of attenuation, files that are written whole or not at all, and the format of checkpoints."""
