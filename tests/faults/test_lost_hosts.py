"""F7, F8: a killed host ends the others, and another number of hosts resumes."""

import json
import signal
import time

import jax
import pytest

from bljust_jax.monitoring import metrics
from tests.helpers import corpora
from tests.helpers.corpora import SEGMENTS, load
from tests.helpers.processes import HEARTBEAT, finish_all, train_on
from tests.helpers.workdirs import rows_without_perf

SAYS_WHAT_IT_HEARS = """
import json, sys
import jax
from bljust_jax import main
from bljust_jax.data import corpus
train_batches = corpus.Corpus.train_batches
def told(self, segments, start, **shard):
    with open(f"{main.WORKDIR.value}/heard-{jax.process_index()}", "w") as file:
        for step, batch in enumerate(train_batches(self, segments, start, **shard), start):
            ids = {stream: arrays["ids"].tolist() for stream, arrays in batch.items()}
            print(json.dumps([step, ids]), file=file)
            yield batch
corpus.Corpus.train_batches = told
sys.exit(main.main())
"""


def wait_for_step(processes, workdir, step):
    """Wait until these processes, not those before them, have logged step `step` or a later one."""
    path = workdir / "metrics.jsonl"

    def logged():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
        return path.exists() and any(row["step"] >= step for row in metrics.read(path))

    while logged():  # rows logged after the last save are dropped
        pass
    while not logged():
        pass


@pytest.mark.slow
def test_a_killed_host_ends_the_others_and_all_start_again(tmp_path):
    """F7: of two hosts, first the one without the coordinator, then the coordinator is killed;
    parameters and metrics equal those of an uninterrupted run of two."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    last = json.loads(finish_all(train_on(2, whole, devices=1))[0].splitlines()[-1])
    waited = []
    for victim in (1, 0):
        pair = train_on(2, broken, devices=1)
        wait_for_step(pair, broken, 10)
        pair[victim].send_signal(signal.SIGKILL)
        began = time.monotonic()
        pair[1 - victim].communicate(timeout=HEARTBEAT + 110)  # it would wait for ever
        waited.append(time.monotonic() - began)
        pair[victim].communicate()
        assert pair[1 - victim].returncode != 0
        assert pair[victim].returncode == -signal.SIGKILL
    print("the other was gone after", *(f"{seconds:.1f} s" for seconds in waited))
    out, _ = finish_all(train_on(2, broken, devices=1))
    assert json.loads(out.splitlines()[-1]) == last
    assert rows_without_perf(broken) == rows_without_perf(whole)


@pytest.mark.slow
def test_one_two_and_four_hosts_hear_and_learn_the_same(tmp_path):
    """F8: four devices in all. Every step has the same utterances, and losses differ by at
    most 1e-5."""
    heard, losses = {}, {}
    for count in (1, 2, 4):
        workdir, heard[count] = tmp_path / str(count), {}
        code = ["-c", SAYS_WHAT_IT_HEARS]
        finish_all(train_on(count, workdir, devices=4 // count, code=code))
        for i in range(count):
            for line in (workdir / f"heard-{i}").read_text().splitlines():
                step, ids = json.loads(line)
                for stream, numbers in ids.items():
                    heard[count].setdefault((step, stream), []).extend(numbers)
        losses[count] = {
            (row["step"], name): value
            for row in rows_without_perf(workdir)
            for name, value in row.items()
            if name.endswith("/loss")
        }
    sets = {count: {k: set(v) for k, v in steps.items()} for count, steps in heard.items()}
    assert len({step for step, _ in sets[1]}) == 16
    assert sets[1] == sets[2] == sets[4]
    assert losses[1].keys() == losses[2].keys() == losses[4].keys()
    apart = {n: max(abs(losses[n][k] - losses[1][k]) for k in losses[1]) for n in (2, 4)}
    print("losses apart from those of one host:", apart)
    assert max(apart.values()) <= 1e-5


@pytest.mark.daily("2")
@pytest.mark.parametrize("count", [2, 4])
def test_shards_of_any_number_of_hosts_are_the_whole_batch(count, tmp_path):
    """F8 for the loader alone: the hosts' rows in order are those of the whole batch."""
    corpus = load(corpora.noise(tmp_path), multiple=4)
    whole = corpus.train_batches(SEGMENTS, 0)
    parts = [corpus.train_batches(SEGMENTS, 0, shard=(i, count)) for i in range(count)]
    for batch, *shards in zip(whole, *parts, strict=True):
        joined = jax.tree.map(lambda *x: [n for part in x for n in part.tolist()], *shards)
        for stream, arrays in batch.items():
            for name in ("ids", "audio_lengths"):
                assert joined[stream][name] == arrays[name].tolist()
