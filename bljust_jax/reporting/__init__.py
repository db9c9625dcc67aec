"""Write report.md and pictures of a training run, and compare several runs.

A report is made from the files of the run's folder alone, so it can be made again at any time.
"""

import pathlib

from bljust_jax.reporting.utterances import typical

__all__ = ["typical", "write"]


def write(workdir: pathlib.Path) -> pathlib.Path:
    """`page.write`: the path of report.md. matplotlib is imported here, at the end of a run: it is
    a fifth of the imports that the first step would wait for."""
    from bljust_jax.reporting import page

    return page.write(workdir)
