"""What a training adds to MONAI's engines: batches, trainers, losses, handlers, data sets of latents, and resuming.

Import from its modules: a configuration names the one that it needs, and the others are not loaded.
"""
