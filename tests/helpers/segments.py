"""A corpus of segments to write as ArrayRecord shards, and the comparison with what is read."""

import json
import pathlib

import numpy as np
import soundfile

from bljust_jax.data.sources import read_audio

RATE = 8000


def segments(made: pathlib.Path) -> pathlib.Path:
    """A manifest of 24 segments of one FLAC and one Opus file, some offsets between samples."""
    noise = np.random.default_rng(0).integers(-3000, 3000, 40 * RATE).astype(np.int16)
    soundfile.write(made / "a.flac", noise, RATE)
    soundfile.write(made / "b.opus", noise[::-1] / 32768, RATE, format="OGG", subtype="OPUS")
    lines = []
    for i in range(24):
        entry = {"audio_filepath": "b.opus" if i % 3 else "a.flac", "id": f"ü/{i}"}
        entry |= {"offset": 1.5 * i + 0.00007 * i, "duration": 0.4 + 0.03 * i}
        entry |= {"speaker": f"s{i % 4}", "lang": "xx"} | ({"text": f"n {i} é"} if i % 5 else {})
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    (made / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    return made


def assert_same(original, stored, rate):
    """Equal in all fields that training uses, and in every sample."""
    assert len(original) == len(stored)
    kept = ("id", "duration", "text", "lang", "speaker", "part")
    for u, v in zip(original, stored, strict=True):
        assert [getattr(u, k) for k in kept] == [getattr(v, k) for k in kept]
        assert abs(v.offset) <= 0.5 / rate
        np.testing.assert_array_equal(read_audio(u, rate), read_audio(v, rate))
