"""Radiographs in a PACS, by DICOMweb, as the DICOM files that they are."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from cachetools import TTLCache, cached
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from pydicom.dataset import Dataset

__all__ = ["RadiographStore"]

#: Modalities of what `custom.radiographs` reads.
MODALITIES = ("DX", "CR", "XA", "RF", "RTIMAGE")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


class RadiographStore(DICOMWebDatastore):
    """Series of radiographs; an image's id is its Series Instance UID (0020,000E).

    MONAI Label's own store turns a series into NIfTI, in which distances, angles, patient orientation and the meaning
    of values are lost. This one gives the folder of the DICOM files.

    Args:
        client: DICOMweb client.
        cache_path: folder for what was fetched; by default MONAI Label's, in the user's home.
    """

    def __init__(self, client: Any, cache_path: str | None = None) -> None:
        chosen = dict(settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER)
        # MONAI Label's default asks for CTs.
        self._filters = [{"Modality": m} for m in MODALITIES] if chosen == {"Modality": "CT"} else [chosen]
        super().__init__(client, chosen, cache_path, fetch_by_frame=False, convert_to_nifti=False)

    @property
    def root(self) -> Path:
        """The folder of what was fetched."""
        return Path(self._datastore.image_path()).resolve()

    @cached(cache=TTLCache(maxsize=16, ttl=settings.MONAI_LABEL_DICOMWEB_CACHE_EXPIRY))
    def list_images(self) -> list[str]:
        found = [s for one in self._filters for s in self._client.search_for_series(search_filters=one)]
        return list(dict.fromkeys(str(Dataset.from_json(s).SeriesInstanceUID) for s in found))

    def get_image_uri(self, image_id: str) -> str:
        """The folder of a series' DICOM files, fetched unless exactly its instances are there already.

        Raises:
            FileNotFoundError: no such series, or no UID at all.
        """
        if len(image_id) > 64 or not _UID.fullmatch(image_id):
            raise FileNotFoundError(f"{image_id!r} is no Series Instance UID, which ids of this datastore are")
        query = {"SeriesInstanceUID": image_id}
        series = [Dataset.from_json(s) for s in self._client.search_for_series(search_filters=query)]
        # A server that does not know the query may answer with every series.
        studies = [str(s.StudyInstanceUID) for s in series if str(s.SeriesInstanceUID) == image_id]
        if not studies:
            raise FileNotFoundError(f"{image_id}: no such series on {self._client.base_url}")
        folder = self.root / image_id
        wanted = {
            f"{Dataset.from_json(i).SOPInstanceUID}.dcm"
            for i in self._client.search_for_instances(studies[0], image_id)
        }
        if not folder.is_dir() or {path.name for path in folder.iterdir()} != wanted:
            self._fetch(studies[0], image_id, folder)
        return str(folder)

    def _fetch(self, study: str, series: str, folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".fetching") as place:
            part = Path(place, series)
            part.mkdir()
            for instance in self._client.retrieve_series(study, series):
                uid = str(instance.SOPInstanceUID)
                if _UID.fullmatch(uid):
                    instance.save_as(part / f"{uid}.dcm")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(part, folder)
