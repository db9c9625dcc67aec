"""Write the parts of a corpus by an Apache Beam pipeline: direct, Flink, Spark or Dataflow.

A worker opens the source itself and writes the files of one part at a time. All machines must reach
the audio, and the folder that is written, under one path. A part that a lost worker left is written
again by another; its bytes do not depend on who writes it.
"""

import functools
import os
import pathlib
import shlex
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from bljust_jax.common import timeout
from bljust_jax.common.errors import UserError, one_line
from bljust_jax.data import shard_parts
from bljust_jax.data.shard_parts import Part
from bljust_jax.data.shard_writing import OTHER_MACHINES, Executor, Unfinished
from bljust_jax.data.sources import open_source
from bljust_jax.data.utterances import Utterance

# Beam's names. Its own DirectRunner may download a server, so the one in Python is named.
RUNNERS = {
    "direct": "apache_beam.runners.portability.fn_api_runner.FnApiRunner",
    "flink": "FlinkRunner",
    "spark": "SparkRunner",
    "dataflow": "DataflowRunner",
}
WORKER_THREAD = "run_worker"  # Beam's name of a thread that watches a process


class Job(NamedTuple):
    """What a worker needs to write one part."""

    uri: str
    root: str
    sample_rate: int
    folder: str
    part: Part


def executor(uri: str, root: str, sample_rate: int, runner: str, options: str) -> Executor:
    """Writes parts of the source `uri` by a pipeline; runner: one of RUNNERS; options: Beam's, as
    on a command line. Raises UserError where apache-beam is missing or does not know an option."""
    made = pipeline_options(runner, options)

    def execute(parts: Sequence[Part], folder: pathlib.Path) -> None:
        jobs = [Job(uri, root, sample_rate, str(folder), part) for part in parts]
        if not jobs:
            return
        try:
            _run(build(jobs, made))
        except Exception as error:  # each runner has its own
            raise Unfinished(
                f"--runner={runner}: the pipeline failed: {_reason(error)}; finished shards are "
                "kept: correct it and run the same command again"
            ) from error

    return execute


def pipeline_options(runner: str, options: str) -> Any:
    """Beam's PipelineOptions. By default `direct` has one process per core."""
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            f"--runner={runner} needs Apache Beam ({error}): pip install 'bljust_jax[beam]'"
        ) from error
    arguments = [f"--runner={RUNNERS[runner]}", *shlex.split(options)]
    if runner == "direct":
        count = f"--direct_num_workers={os.cpu_count()}"
        quiet = "--default_sdk_harness_log_level=WARNING"
        arguments[1:1] = ["--direct_running_mode=multi_processing", count, quiet]
    known = set(PipelineOptions([]).get_all_options())
    given = [a.partition("=")[0].lstrip("-") for a in shlex.split(options) if a.startswith("--")]
    unknown = [name for name in given if name not in known and f"no_{name}" not in known]
    if unknown:
        raise UserError(f"--beam_options: Beam has no option --{unknown[0]}; see its documentation")
    return PipelineOptions(arguments)


def build(jobs: Sequence[Job], options: Any) -> Any:
    """The pipeline: one element per part, distributed over the workers."""
    import apache_beam as beam

    pipeline = beam.Pipeline(options=options)
    elements = pipeline | "parts" >> beam.Create(jobs)
    elements | "distribute" >> beam.Reshuffle() | "write" >> beam.Map(write_part)
    return pipeline


def _run(pipeline: Any) -> None:
    """Run a pipeline to its end. Raises Unreachable if a process of the direct runner is lost, for
    which Beam itself waits without end."""
    lost: list[str] = []

    def note(args: threading.ExceptHookArgs) -> None:
        """Beam's threads fail one by one after a process."""
        if args.thread is not None and args.thread.name == WORKER_THREAD:
            lost.append(str(args.exc_value))
        elif not lost:
            before(args)

    before, threading.excepthook = threading.excepthook, note
    try:
        timeout.call_while(
            lambda: not lost,
            lambda: pipeline.run().wait_until_finish(),
            lambda: f"a worker was lost: {lost[0]}",
        )
    finally:
        if not lost:  # its threads go on failing until the process ends
            threading.excepthook = before


def write_part(job: Job) -> int:
    """Write one part; its number. UserError if the source is another one on this machine."""
    part, folder = job.part, pathlib.Path(job.folder)
    if shard_parts.finished(part, folder):  # by a worker that was counted as lost
        return part.number
    members = _utterances(job.uri, job.root)[part.start : part.stop]
    if shard_parts.fingerprint(members, job.sample_rate) != part.plan:
        raise UserError(f"{job.uri} has other utterances on this machine; {OTHER_MACHINES}")
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist on this machine; {OTHER_MACHINES}")
    encoded = ((u, shard_parts.encode(u, sample_rate=job.sample_rate)) for u in members)
    shard_parts.write(part, encoded, job.sample_rate, folder)
    return part.number


@functools.lru_cache(maxsize=1)
def _utterances(uri: str, root: str) -> Sequence[Utterance]:
    """The source, opened once per process."""
    return open_source(uri, root)


def _reason(error: Exception) -> str:
    """The last line of a worker's traceback, which names the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Error: " in line]
    return one_line(Exception((named or lines or [type(error).__name__])[-1]))
