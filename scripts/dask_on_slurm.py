"""Template: a Dask scheduler whose workers are jobs of SLURM. Adapt the numbers; needs dask-jobqueue.

    python scripts/dask_on_slurm.py                # runs until Ctrl-C; prints the address for --scheduler
    python scripts/dask_on_slurm.py --script       # prints the job of a worker and ends

Every worker is one process of one thread: cases of one process would wait for each other.
"""

from __future__ import annotations

import sys
import time

from dask_jobqueue import SLURMCluster

MOST_WORKERS = 64


def main() -> None:
    cluster = SLURMCluster(
        cores=1,
        processes=1,
        memory="4GB",  # prepare: 2 to 4 GB a worker, simulate: 2 GB
        walltime="04:00:00",
        # Workers end by themselves before SLURM ends them, so that no case is lost to the time limit.
        worker_extra_args=["--lifetime", "3h45m", "--lifetime-stagger", "10m"],
        job_script_prologue=["source .venv/bin/activate"],
        scheduler_options={"port": 8786, "dashboard_address": "127.0.0.1:8787"},
    )
    if "--script" in sys.argv[1:]:
        print(cluster.job_script())
        return
    cluster.adapt(minimum_jobs=0, maximum_jobs=MOST_WORKERS)
    print(cluster.scheduler_address, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
