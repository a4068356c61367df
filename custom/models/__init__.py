"""Trained models: where their files are, how they are loaded and exported, and the volume that they give."""

from custom.models.model_files import MODEL_NAMES, SEGMENTER, ModelFiles, find_model
from custom.models.model_folder import Model, load_model
from custom.models.predicted_volume import reconstruct_volume, save_volume

__all__ = [
    "MODEL_NAMES",
    "SEGMENTER",
    "Model",
    "ModelFiles",
    "find_model",
    "load_model",
    "reconstruct_volume",
    "save_volume",
]
