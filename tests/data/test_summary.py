"""Lines on the data at the start of a run."""

import pytest

from bljust_jax.data.buckets import bucket_table
from bljust_jax.data.sources import open_source
from bljust_jax.data.summary import speakers, uneven_batches
from tests.helpers import corpora
from tests.helpers.corpora import PLAIN, load, write


@pytest.mark.parametrize(
    ("lengths", "seconds", "ratio"),
    [
        ((5.0, 10.0, 17.0), 160.0, None),  # 160, 160, 153 s
        ((5.0, 17.0), 32.0, "1.8"),  # 6 x 5 = 30, 1 x 17 s
        ((4.0, 6.0), 6.0, None),  # 4, 6 s: 1.5 times, not more
        ((3.9, 6.0), 6.0, "1.5"),
        ((20.0,), 5.0, None),
    ],
)
def test_batches_that_vary_by_more_than_half_are_named(lengths, seconds, ratio):
    found = uneven_batches("labelled", bucket_table(lengths, seconds, 25.0))
    assert len(found) == (ratio is not None)
    if ratio:
        assert found[0].startswith(f"labelled: batches vary by {ratio} times in seconds of audio")


def test_a_run_notes_it_at_its_start_for_buckets_that_occur(tmp_path):
    corpora.noise(tmp_path)  # 0.2 to 1.4 s
    # 4 x 0.5 = 2 s, 1 x 1.1 s, 1 x 1.5 s
    lines = load(tmp_path, **PLAIN, buckets=(0.5, 1.1, 1.5), batch_seconds=2.1).summary()
    assert any(line.startswith("labelled: batches vary by 1.8 times") for line in lines)
    # no utterance is in batches of 1 x 5 s
    lines = load(tmp_path, **PLAIN, buckets=(0.5, 1.5, 5.0), batch_seconds=3.0).summary()
    assert not any(line.startswith("labelled: batches vary") for line in lines)


def test_speakers_are_counted_where_the_source_names_them(tmp_path):
    """An entry without a speaker has its id in the place of one."""
    entries = [{"audio_filepath": f"{n}.wav", "duration": 1.0, "id": str(n)} for n in range(3)]
    for entry in entries:
        (tmp_path / entry["audio_filepath"]).touch()  # not decoded
    assert speakers(open_source(write(tmp_path, "none", entries))) == "speakers not named"
    entries[0]["speaker"] = entries[1]["speaker"] = "anna"
    assert speakers(open_source(write(tmp_path, "some", entries))) == "2 speakers"
