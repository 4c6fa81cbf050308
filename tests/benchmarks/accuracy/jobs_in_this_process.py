"""What runs jobs in this process, where what a test has changed is known."""

from __future__ import annotations

import torch

from benchmarks.job_queue import FOREVER
from benchmarks.results import append_result


def run_jobs_here(jobs, out, *, together=1, seconds=FOREVER):
    """As ``run_jobs``, one after the other."""
    missing = []
    for job in jobs:
        try:
            lines = job.run(torch.device("cpu"), seconds)
        except Exception as error:
            print(f"{job}: {error}")
            missing.append(str(job))
            continue
        for line in lines:
            append_result(out, line)
    return missing
