"""A population of procedural thoraces in HU with organ labels, for tests, pre-training and segmentation."""

from custom.data.phantom.anatomy import LABELS, Person
from custom.data.phantom.population import write_phantoms
from custom.data.phantom.thorax import Phantom, make_thorax

__all__ = ["LABELS", "Person", "Phantom", "make_thorax", "write_phantoms"]
