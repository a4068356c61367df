"""Values of `--accept`: assumptions that are allowed where no file says otherwise, each by its name."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "ACCEPT",
    "DEFAULT_ISOCENTER_TO_DETECTOR_MM",
    "DEFAULT_SOURCE_TO_DETECTOR_MM",
    "LOG_RANGE",
    "check_accept",
]

#: Line integral that `--accept log-range` gives to the most attenuated exposed pixels: about 25 cm of water at 70 keV.
LOG_RANGE = 5.0
#: Distances that `--accept default-distances` takes: a chest radiograph at the wall stand [mm].
DEFAULT_SOURCE_TO_DETECTOR_MM = 1800.0
DEFAULT_ISOCENTER_TO_DETECTOR_MM = 150.0

#: Names that `--accept` takes, each with what it assumes.
ACCEPT: dict[str, str] = {
    "default-distances": (
        f"where distances are missing: source to detector {DEFAULT_SOURCE_TO_DETECTOR_MM:g} mm, the middle of the "
        f"patient {DEFAULT_ISOCENTER_TO_DETECTOR_MM:g} mm in front of the detector (a chest radiograph at the wall "
        "stand)"
    ),
    "pixel-spacing-at-detector": (
        "Pixel Spacing (0028,0030) is measured on the detector where neither Imager Pixel Spacing nor a calibration "
        "type says so"
    ),
    "pixel-spacing-at-isocenter": (
        "Pixel Spacing (0028,0030) is measured in the middle of the patient, and is magnified onto the detector by the "
        "distances"
    ),
    "as-displayed": (
        "a frontal radiograph without Patient Orientation is stored as it is shown: the patient's left at the right "
        "of the picture, head up"
    ),
    "seen-from-source": "a radiograph without Patient Orientation is stored as seen from the source, head up",
    "seen-from-detector": "a radiograph without Patient Orientation is stored as seen from the detector, head up",
    "head-first-supine": "an RTIMAGE without Patient Position shows a patient head first, supine",
    "for-presentation": (
        "a picture made for viewing, or one that does not say how its values follow from the X-ray intensity, is read "
        "as a logarithm of the intensity (or as Pixel Intensity Relationship says), dark or bright by Photometric "
        "Interpretation; tone curves and enhancement are not undone, so line integrals are only roughly right"
    ),
    "log-range": (
        "a logarithmic picture without a scale: the most attenuated 0.1 % of the exposed pixels have a line integral "
        f"of {LOG_RANGE:g}"
    ),
    "brightest-as-air": (
        "where no air is seen beside the patient, the 0.1 % of the exposed pixels with the highest intensity are "
        "taken as the unattenuated beam"
    ),
    "repeated-exposures": (
        "pictures that look like one exposure given twice are two exposures, whose views are right; a view that is "
        "counted twice adds nothing to a reconstruction"
    ),
    "study-dates-apart": (
        "radiographs whose Study Dates (0008,0020) are more than a week apart show the same body: it has not changed "
        "between them, or a date is wrong"
    ),
    "several-patients": "radiographs that name different patients belong to one; no CT series, give --nodicom",
}


def check_accept(accept: Sequence[str] | str) -> frozenset[str]:
    """The accepted assumptions as a set.

    Args:
        accept: names, or one text of names with commas between.

    Raises:
        ValueError: for a name that is not in `ACCEPT`.
    """
    names = [accept] if isinstance(accept, str) else list(accept)
    names = [part.strip() for name in names for part in str(name).split(",") if part.strip()]
    for name in names:
        if name not in ACCEPT:
            raise ValueError(f"--accept {name} is not known; it takes {', '.join(ACCEPT)}")
    return frozenset(names)
