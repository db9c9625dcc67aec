"""F22: a data loader that fails or hangs ends the run within seconds and names the file."""

import threading

import pytest

from bljust_jax.common import cli, timeout
from bljust_jax.data import splits
from tests.helpers import corpora
from tests.helpers.corpora import SEGMENTS, load
from tests.helpers.processes import start

PATIENCE = 300  # seconds that a thread hangs: a loader that waits for it fails the test then


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpora.noise(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def reading(monkeypatch):
    """`reading(act)` calls act() in the thread that reads utterance u17."""
    read = splits.read_audio

    def reading(act):
        def read_or_act(u, rate):
            if u.id == "u17":
                act()
            return read(u, rate)

        monkeypatch.setattr(splits, "read_audio", read_or_act)

    return reading


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_an_error_in_a_thread_names_the_utterance(folder, reading, threads):
    """An unexpected error keeps its traceback and gets a note that names the utterance."""

    def fail():
        raise MemoryError("no room")

    reading(fail)
    with pytest.raises(MemoryError, match="no room") as raised:
        list(load(folder, num_threads=threads).train_batches(SEGMENTS, 0))
    note, *_ = raised.value.__notes__
    assert note == f"while reading {folder}/17.flac of u17 ({folder}/train.jsonl:18)"


@pytest.mark.daily("2")
@pytest.mark.parametrize("threads", [0, 2])
def test_a_thread_that_hangs_is_not_waited_for(folder, reading, threads):
    until, waited = threading.Event(), []
    reading(lambda: waited.append(until.wait(PATIENCE)))
    corpus = load(folder, num_threads=threads, timeout=1.0)
    with pytest.raises(timeout.Unreachable, match=r"no batch came within 1 s \(config\.data\.tim"):
        list(corpus.train_batches(SEGMENTS, 0))
    assert not waited
    until.set()


SILENT = """
import sys, time
from bljust_jax import main
from bljust_jax.data import splits
splits.read_audio = lambda *_: time.sleep(600)
sys.exit(main.main())
"""


@pytest.mark.slow
def test_a_disk_that_does_not_answer_ends_the_command(tmp_path):
    """The process ends although its threads still wait for the disk."""
    flags = ["--config=configs/quickstart.py:smoke", f"--workdir={tmp_path / 'run'}"]
    process = start(["-c", SILENT], *flags, "--config.data.timeout=2.0")
    _, err = process.communicate(timeout=240)
    assert process.returncode == cli.UNREACHABLE, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: no batch came within 2 s (config.data.timeout)")
