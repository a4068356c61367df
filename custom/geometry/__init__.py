"""Where every view stands: source, detector and volume grid, in millimetres and degrees.

The world here is the isocentre frame: RAS+ axes (x to the patient's right, y anterior, z superior), origin at the
isocentre. A view is a row of 13 numbers, so that networks and projector see a plain tensor of shape (B, K, 13):

| numbers | meaning |
|---|---|
| 0:3 | cone beam: source position [mm]; parallel beam: unit ray direction, from source to detector |
| 3:6 | detector centre [mm] |
| 6:9 | u step: from one column to the next [mm] |
| 9:12 | v step: from one row to the next [mm]; row 0 is superior, so it points downwards |
| 12 | beam flag: 0 parallel, 1 cone |

(u step, v step, direction of the rays) is right-handed: the radiograph is the picture as seen from the source.
"""

from custom.geometry.geometry import JSON_FORMAT, Geometry
from custom.geometry.grid import VolumeGrid
from custom.geometry.slit_scan import slit_scan_views
from custom.geometry.view_row import ViewRow
from custom.geometry.views import (
    BEAMS,
    CONE,
    PARALLEL,
    VIEW_SIZE,
    detector_pixels,
    is_cone,
    is_upright,
    is_vertical_parallel,
    pixel_coordinates,
    projection_matrices,
    rays,
    views_from_angles,
)

__all__ = [
    "BEAMS",
    "CONE",
    "JSON_FORMAT",
    "PARALLEL",
    "VIEW_SIZE",
    "Geometry",
    "ViewRow",
    "VolumeGrid",
    "detector_pixels",
    "is_cone",
    "is_upright",
    "is_vertical_parallel",
    "pixel_coordinates",
    "projection_matrices",
    "rays",
    "slit_scan_views",
    "views_from_angles",
]
