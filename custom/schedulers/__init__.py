"""DPM-Solver++ and noise schedules, in MONAI's `Scheduler` interface."""

from custom.schedulers.dpm_solver import DPMSolverPPScheduler
from custom.schedulers.noise_schedules import cosine_floor, ddpm_linear, gamma_linear
from custom.schedulers.solver_updates import dpm_solver_update

__all__ = ["DPMSolverPPScheduler", "cosine_floor", "ddpm_linear", "dpm_solver_update", "gamma_linear"]
