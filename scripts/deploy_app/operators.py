"""The operators of the application: what lies between MONAI Deploy and `custom.reconstruct`."""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.deploy.core import Fragment, Operator, OperatorSpec
from monai.deploy.core.domain.dicom_series_selection import StudySelectedSeries
from monai.deploy.core.domain.dicom_study import DICOMStudy
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from settings import Settings

from custom.core.atomic_directory import atomic_directory, check_free
from custom.dicom.header import RADIOGRAPH_CLASSES, NotARadiograph, read_header
from custom.dicom.strict import is_uid
from custom.models import Model, load_model
from custom.radiographs import Radiograph, read_radiographs
from custom.radiographs.discovery import kind_of
from custom.reconstruct import reconstruct
from custom.reconstruct.outputs import OUTPUTS, RESULT, dry_run, write_outputs
from custom.trust import Verdict

__all__ = ["CompleteLoaderOperator", "ReconstructionOperator", "ResultWriterOperator"]

logger = logging.getLogger(__name__)


class CompleteLoaderOperator(DICOMDataLoaderOperator):
    """The SDK's loader, to which a radiograph that it cannot load is a line in the log. Here it is an error.

    Of two views, of which one is damaged, a CT would come from the other alone.

    Named output:
        dicom_study_list: list of DICOMStudy.
    """

    def load_data_to_studies(self, input_path: Path) -> list[DICOMStudy]:
        """All DICOM objects of a folder and its subfolders.

        Raises:
            ValueError: no DICOM files, or a radiograph that could not be loaded, naming the file.
        """
        input_path = Path(input_path)
        files = [p for p in sorted(input_path.rglob("*")) if p.is_file() and p.name.upper() != "DICOMDIR"]
        files = [p for p in files if kind_of(p) == "DICOM"]
        try:
            studies = super().load_data_to_studies(input_path)
        except Exception as error:  # whatever pydicom raises for a damaged file, without its name
            for path in files:
                _is_radiograph(path)
            raise ValueError(f"{input_path}: cannot be loaded ({type(error).__name__}: {error})") from error
        if not files and not studies:
            raise ValueError(f"{input_path}: holds no DICOM files")
        loaded = {path for study in studies for series in study.get_all_series() for path in _files(series)}
        for path in files:
            if path not in loaded and _is_radiograph(path):
                raise ValueError(
                    f"{path}: MONAI Deploy does not load it: it has no preamble, lacks the UID of its study, series or "
                    "instance, or has the position of another; correct it or take it away"
                )
        return studies


def _files(series: Any) -> list[Path]:
    return [Path(instance.get_native_sop_instance().filename) for instance in series.get_sop_instances()]


def _is_radiograph(path: Path) -> bool:
    """Whether it is one; raises ValueError where it should be and is damaged."""
    try:
        read_header(path)
    except NotARadiograph:
        return False
    return True


@dataclass
class _Study:
    uid: str
    radiographs: list[Radiograph]
    seconds: float


class ReconstructionOperator(Operator):
    """`custom.reconstruct.reconstruct`, once a study; the radiographs of all are read before the first is computed.

    Named input:
        study_selected_series_list: list of StudySelectedSeries; what is no radiograph in them is left out.

    Named output:
        reconstructions: list of (Study Instance UID, `custom.reconstruct.Reconstruction`).
    """

    def __init__(
        self, fragment: Fragment, *args: Any, model: Path, output_folder: Path, settings: Settings, **kwargs: Any
    ) -> None:
        """Stores what it needs.

        Args:
            fragment: the application.
            args: conditions.
            model: what `custom.models.load_model` takes.
            output_folder: that the results will be written to; looked at before long work.
            settings: of the run.
            kwargs: such as the operator's name.
        """
        self.model, self.output_folder, self.settings = model, output_folder, settings
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declares the ports."""
        spec.input("study_selected_series_list")
        spec.output("reconstructions")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Reads, checks, computes.

        Raises:
            ValueError, FileExistsError, ModuleNotFoundError: as `custom.reconstruct.reconstruct`.
        """
        given, settings = op_input.receive("study_selected_series_list"), self.settings
        if not given:
            raise ValueError("no series of the modalities CR, DX, XA, RF or RTIMAGE in the input folder")
        model = load_model(self.model, settings.device, settings.precision)
        found = []
        for study in [self._read(study, model) for study in given]:
            result = reconstruct(
                study.radiographs,
                model=model,
                samples=settings.samples,
                accept=settings.accept,
                angles_deg=settings.angles_deg,
                refine_poses=settings.refine_poses,
                pose_tolerance_deg=settings.pose_tolerance_deg,
                pose_tolerance_mm=settings.pose_tolerance_mm,
                pose_tolerance_distance=settings.pose_tolerance_distance,
                grey_wider_than_hu=settings.grey_wider_than_hu,
                seed=settings.seed,
                thresholds=settings.thresholds,
            )
            result.seconds["read"] += study.seconds
            found.append((study.uid, result))
        op_output.emit(found, "reconstructions")

    def _read(self, selected: StudySelectedSeries, model: Model) -> _Study:
        """The radiographs of a study, in the order of their paths as the command line takes those of a folder."""
        start, settings, uid = time.perf_counter(), self.settings, str(selected.study.StudyInstanceUID)
        if not is_uid(uid):
            raise ValueError(f"the Study Instance UID (0020,000D) {uid!r} is none; correct it")
        check_free(self.output_folder / uid, RESULT, settings.overwrite, OUTPUTS)
        paths: list[Path] = []
        left_out: list[Path] = []
        for one in selected.selected_series:
            for instance in one.series.get_sop_instances():
                header = instance.get_native_sop_instance()
                kept = header.SOPClassUID in RADIOGRAPH_CLASSES
                (paths if kept else left_out).append(Path(header.filename))
        if not paths:
            raise ValueError(f"no radiographs (CR, DX, XA, RF or RTIMAGE) in the study {uid}")
        radiographs = read_radiographs(sorted(paths), settings.geometry, settings.accept)
        said = (f"{path.name} in the study was left out: no radiograph" for path in sorted(left_out))
        radiographs[0] = radiographs[0].with_warnings(*said)
        model.require(settings.samples)
        with tempfile.TemporaryDirectory() as place:
            dry_run(Path(place), radiographs, model, dicom=True, uncertainty=settings.samples > 0)
        return _Study(uid, radiographs, time.perf_counter() - start)


class ResultWriterOperator(Operator):
    """Writes each reconstruction into a folder of its study's UID, which appears whole or not at all.

    What is in it: `custom.reconstruct.outputs`, which writes for the command line too. A name of its own, since a
    package's output folder is a mount, which cannot be replaced in one step.

    Named input:
        reconstructions: list of (Study Instance UID, `custom.reconstruct.Reconstruction`).

    Attributes:
        verdicts: of what was written.
    """

    def __init__(
        self, fragment: Fragment, *args: Any, output_folder: Path, report: bool, overwrite: bool, **kwargs: Any
    ) -> None:
        """Stores what it needs.

        Args:
            fragment: the application.
            args: conditions.
            output_folder: that the results' folders are made in.
            report: write report.html.
            overwrite: replace results that are there.
            kwargs: such as the operator's name.
        """
        self.output_folder, self.report, self.overwrite = output_folder, report, overwrite
        self.verdicts: list[Verdict] = []
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declares the port."""
        spec.input("reconstructions")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Writes.

        Raises:
            FileExistsError, OSError: the folder is there, or cannot be written.
        """
        for uid, found in op_input.receive("reconstructions"):
            with atomic_directory(self.output_folder / uid, RESULT, self.overwrite, OUTPUTS) as folder:
                write_outputs(folder, found, dicom=True, no_maps=None, report=self.report, uid_seed=None)
            self.verdicts.append(found.verdict)
            logger.info("%s: %s, %.1f s", uid, found.verdict.value, sum(found.seconds.values()))
