"""The application: DICOM radiographs of a folder become a CT series with report and checks, one result a study."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import holoscan.logger
from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from operators import CompleteLoaderOperator, ReconstructionOperator, ResultWriterOperator
from settings import Settings, choose_model

from custom.cli import ExitCode
from custom.core.user_errors import BAD_INPUT_ERRORS
from custom.trust import Verdict

__all__ = ["ReconstructionApp", "main"]

logger = logging.getLogger(__name__)

RULES = {"selections": [{"name": "radiographs", "conditions": {"Modality": "^(CR|DX|XA|RF|RTIMAGE)$"}}]}


class ReconstructionApp(Application):
    """Loader, series selector, reconstruction and writer, one after the other.

    Input, output and model come from `-i`, `-o` and `-m`, or from HOLOSCAN_INPUT_PATH, HOLOSCAN_OUTPUT_PATH and
    HOLOSCAN_MODEL_PATH; everything else from `settings.Settings`.
    """

    def compose(self) -> None:
        """Makes the pipeline.

        Raises:
            ValueError, FileNotFoundError: a setting, or no model.
        """
        context = Application.init_app_context(self.argv)
        self.settings = settings = Settings.from_environment(os.environ)
        output = Path(context.output_path)
        loader = CompleteLoaderOperator(
            self, CountCondition(self, 1), input_folder=Path(context.input_path), must_load=False, name="loader"
        )
        selector = DICOMSeriesSelectorOperator(self, rules=json.dumps(RULES), all_matched=True, name="selector")
        reconstruction = ReconstructionOperator(
            self,
            model=choose_model(Path(context.model_path), settings.model),
            output_folder=output,
            settings=settings,
            name="reconstruction",
        )
        self.writer = ResultWriterOperator(
            self, output_folder=output, report=settings.report, overwrite=settings.overwrite, name="writer"
        )
        self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(selector, reconstruction, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(reconstruction, self.writer, {("reconstructions", "reconstructions")})


def main() -> int:
    """Runs it; an error is one line, the last on standard error.

    Returns:
        The exit code: `custom.cli.exit_codes.ExitCode`.
    """
    if "HOLOSCAN_LOG_LEVEL" not in os.environ:
        # Holoscan reports an operator's exception in ten lines of its own.
        holoscan.logger.set_log_level(holoscan.logger.LogLevel.OFF)
    try:
        app = ReconstructionApp()
        app.run()
    except Exception as error:
        logger.debug("the application failed", exc_info=True)
        bad_input = isinstance(error, BAD_INPUT_ERRORS)
        text = " ".join(str(error).split())
        sys.stderr.write(f"error: {text if bad_input and text else f'{type(error).__name__}: {text}'}\n")
        return ExitCode.BAD_INPUT if bad_input else ExitCode.FAILED
    if app.settings.strict and Verdict.REJECT in app.writer.verdicts:
        return ExitCode.REJECTED
    if app.settings.strict and Verdict.REVIEW in app.writer.verdicts:
        return ExitCode.TO_REVIEW
    return ExitCode.DONE
