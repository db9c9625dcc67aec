"""`report.md` with pictures: what a run did, what it cost and what it reached; and runs compared.

All of it comes from the files of a run's folder, so a report can be made again at any time.
"""

from bljust_jax.reporting.page import write
from bljust_jax.reporting.utterances import typical

__all__ = ["typical", "write"]
