"""Parts of a training beside MONAI's: batches, trainers, losses, handlers, data sets of latents, resuming.

Import from its modules: a configuration names the one that it needs, and the others are not loaded.
"""
