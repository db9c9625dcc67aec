"""Read what a run leaves in its workdir: metrics, samples, checkpointed arrays."""

import json

from bljust_jax.checkpoint.manager import ocp
from bljust_jax.common.trees import digest
from bljust_jax.monitoring import metrics


def arrays(workdir):
    """Every array of the last checkpoint, as bytes on disk say."""
    last = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    manager = ocp.CheckpointManager(workdir / "checkpoints")
    restored = manager.restore(last, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
    manager.close()
    return last, digest(restored.state)


def read_samples(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rows_without_perf(workdir):
    """The metrics of a run, but for its speed."""
    rows = metrics.read(workdir / "metrics.jsonl")
    return [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in rows]
