"""fewview-ct as a MONAI Label application: `monailabel start_server --app scripts/monailabel_app --studies FOLDER`.

docs/how-to/monai-label.md tells how to install and to ask it.
"""

from __future__ import annotations

import atexit
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dicomweb_client.session_utils import create_session_from_user_pass
from fastapi import HTTPException
from lib.datastore import RadiographStore
from lib.infers.reconstruction import Reconstruct
from lib.request import http_status, inside, message
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from custom import __version__
from custom.models import Model, load_model
from custom.reconstruct.result import WARNING

logger = logging.getLogger(__name__)

#: What `--conf NAME VALUE` may set.
CONF = ("models", "device", "precision")
#: Radiographs in a folder, beside what MONAI Label lists by itself.
PATTERNS = ("*.dcm", "*.tiff")


class FewviewApp(MONAILabelApp):
    """One infer task per model, which keeps its model in memory."""

    studies: str

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        unknown = sorted(set(conf) - {*CONF, "server_mode"})
        if unknown:
            raise ValueError(f"--conf {unknown[0]} is not known; there are {', '.join(CONF)}")
        # Uploads and results lie in a folder of this process alone, so that a request cannot name other people's
        # temporary files.
        self._temporary = Path(tempfile.mkdtemp(prefix="fewview-label-")).resolve()
        atexit.register(shutil.rmtree, self._temporary, ignore_errors=True)
        tempfile.tempdir = str(self._temporary)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf),
            name="fewview-ct",
            description=f"CT from 1 to 8 radiographs. {WARNING}",
            version=__version__,
        )

    def init_infers(self) -> dict[str, Reconstruct]:
        names = [name.strip() for name in self.conf.get("models", "inr_recon").split(",") if name.strip()]
        infers: dict[str, Reconstruct] = {}
        for name in names:
            model: Model = load_model(name, self.conf.get("device"), self.conf.get("precision", "auto"))
            if model.name in infers:
                raise ValueError(f"--conf models {','.join(names)}: two models have the name {model.name}")
            infers[model.name] = Reconstruct(model, self.find)
            logger.info("%s: %s, SHA-256 %s", model.name, model.device, model.sha256)
        return infers

    def init_strategies(self) -> dict[str, Any]:
        return {}  # there is nothing to annotate

    def init_datastore(self) -> Datastore:
        if self.studies.startswith(("http://", "https://")):
            return self.init_remote_datastore()
        return LocalDatastore(
            self.studies,
            extensions=[*settings.MONAI_LABEL_DATASTORE_FILE_EXT, *PATTERNS],
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_remote_datastore(self) -> RadiographStore:
        self.studies = self.studies.strip().rstrip("/")
        user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
        client = DICOMwebClientX(
            url=self.studies,
            session=create_session_from_user_pass(user, password) if user and password else None,
            qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
            stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
        )
        return RadiographStore(client, settings.MONAI_LABEL_DICOMWEB_CACHE_PATH.strip() or None)

    @property
    def roots(self) -> list[Path]:
        """Folders that a request may read: datastore, uploads of a session, upload of the request itself."""
        store = self._datastore
        first = store.root if isinstance(store, RadiographStore) else Path(self.studies)
        sessions = self.sessions()
        return [first, *([Path(sessions.store_path)] if sessions is not None else []), self._temporary]

    def find(self, name: str) -> Path:
        """The file or folder that an id or a path of a request means.

        Raises:
            PermissionError: it is outside.
            FileNotFoundError: nothing there.
            ValueError: no name.
        """
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"an image is named by its id or its path in the datastore, got {name!r}")
        if isinstance(self._datastore, RadiographStore):
            if "/" not in name:
                return inside(self._datastore.get_image_uri(name), self.roots, name)
        elif uri := self._datastore.get_image_uri(name):
            return inside(uri, self.roots, name)
        return inside(name, self.roots)

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Answer POST /infer/MODEL.

        Raises:
            HTTPException: with the error in one line; 404 and 403 for what is not there or not in the datastore, 422
                where radiographs do not say enough about themselves, 400 for other bad requests.
        """
        model, image = request.get("model"), request.get("image")
        task = self._infers.get(model)
        if task is None:
            raise HTTPException(404, f"no model {model!r} is served here; there are {', '.join(self._infers)}")
        try:
            file, record = task(request)
        except (OSError, ValueError, ModuleNotFoundError) as error:
            status = http_status(error)
            if status == 500:
                raise
            raise HTTPException(status, message(error, self.roots)) from error
        finally:
            self._forget_upload(image)
        return {"label": file, "tag": DefaultLabelTag.ORIGINAL, "file": file, "params": record}

    def _forget_upload(self, image: Any) -> None:
        """Remove the file that came with a request: the server only does so after a request that succeeded."""
        if isinstance(image, str) and Path(image).parent == self._temporary:
            Path(image).unlink(missing_ok=True)

    def infer_wsi(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        raise HTTPException(400, "radiographs are no whole-slide images: POST /infer/MODEL")
