"""Child process of a comparison: `bljust train FLAGS` on some cores, until its parent is gone.

    python -m bljust_jax.comparison.child PARENT CORES FLAGS...

It runs on the given cores ("0,1"; "" for all), and ends as after SIGTERM, saved, once its parent is
gone: the next comparison resumes it.
"""

import contextlib
import os
import signal
import sys
import threading
import time

POLL = 0.5  # seconds


def watch(parent: int) -> None:
    """Send SIGTERM to this process once its parent is another one."""
    while os.getppid() == parent:
        time.sleep(POLL)
    os.kill(os.getpid(), signal.SIGTERM)


def main(argv: list[str]) -> int:
    parent, cores, *flags = argv
    with contextlib.suppress(AttributeError):  # systems without it use all cores
        if cores:
            os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    threading.Thread(target=watch, args=(int(parent),), name="parent", daemon=True).start()
    from bljust_jax import main as command

    sys.argv = ["bljust train", *flags]
    return command.main()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
