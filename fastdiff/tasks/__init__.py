"""What a pipeline can be asked for, one file per task: each makes a `Plan` for the sampler's loop."""

from fastdiff.tasks.plan import Plan

__all__ = ["Plan"]
