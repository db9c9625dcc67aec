"""Write report.md and pictures of a training run, and compare several runs.

A report is made from the files of the run's folder alone, so it can be made again at any time.
"""

from bljust_jax.reporting.page import write
from bljust_jax.reporting.utterances import typical

__all__ = ["typical", "write"]
