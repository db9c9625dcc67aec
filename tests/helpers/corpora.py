"""Small corpora of noise, and the settings that load them."""

import json
import pathlib

import numpy as np
import soundfile
from ml_collections import ConfigDict

from bljust_jax.data import config_checks
from bljust_jax.data.corpus import Segment, load_corpus
from bljust_jax.data.sources import Utterance
from configs import defaults

RATE = 8000
SETTINGS = {
    **{"sample_rate": RATE, "join": (2, 3), "join_share": 0.5, "balance": 0.3},
    **{"buckets": (0.5, 1.5), "batch_seconds": 6.0, "labels_per_second": 8.0},
    **{"speed": (0.9, 1.1), "noise_snr": (10.0, 30.0), "min_seconds": 0.0, "max_seconds": 0.0},
    **{"unlabelled_batch_seconds": 12.0, "eval_batch_seconds": 3.0, "prefetch": 4},
    "max_bad_fraction": 0.0,
}
PLAIN = {"join_share": 0.0, "balance": 0.0, "speed": (1.0, 1.0), "noise_snr": ()}
JOINT = ("labelled", "unlabelled")


def settings(folder: pathlib.Path, **changes):
    """`config.data` for the manifests train.jsonl and dev.jsonl of a folder."""
    data = defaults.base().data
    sources = {"train": str(folder / "train.jsonl"), "dev": str(folder / "dev.jsonl")}
    data.update({**SETTINGS, **sources, **changes})
    return data


def load(folder: pathlib.Path, *, seed: int = 0, multiple: int = 1, tokenizer=None, **changes):
    data = settings(folder, **changes)
    tokenizers = {"labelled": tokenizer} if tokenizer else None
    config_checks.check(ConfigDict({"data": data, "seed": seed}))
    return load_corpus(data, seed=seed, multiple=multiple, tokenizers=tokenizers)


def write(folder: pathlib.Path, name: str, entries: list[dict]) -> str:
    """A manifest NAME.jsonl; its path."""
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / f"{name}.jsonl").write_text(lines)
    return str(folder / f"{name}.jsonl")


def noise(made: pathlib.Path) -> pathlib.Path:
    """Noise of growing length: 40 utterances by 4 speakers, every fifth without a text."""
    rng = np.random.default_rng(0)
    entries = []
    for i in range(40):
        seconds = round(0.2 + 0.03 * i, 3)
        audio = rng.integers(-2000, 2000, round(seconds * RATE)).astype(np.int16)
        soundfile.write(made / f"{i}.flac", audio, RATE)
        entry = {"audio_filepath": f"{i}.flac", "duration": seconds, "speaker": f"s{i % 4}"}
        entries.append(entry | {"id": f"u{i}"} | ({"text": f"Ab{i % 3}"} if i % 5 else {}))
    write(made, "train", entries)
    write(made, "dev", [e | {"text": "ba"} for e in entries[::4]] + [entries[39] | {"text": "ab!"}])
    return made


def tones(made: pathlib.Path) -> pathlib.Path:
    """Words of two letters, each a tone of a fifth of a second: 16 to train on, 4 for dev."""
    pitches = {"a": 300, "b": 700, "c": 1500, "d": 3000}
    words = [x + y for x in pitches for y in pitches]
    time = np.arange(RATE // 5) / RATE
    entries = []
    for i, word in enumerate(words):
        audio = [8000 * np.sin(2 * np.pi * pitches[letter] * time) for letter in word]
        soundfile.write(made / f"{i}.wav", np.concatenate(audio).astype(np.int16), RATE)
        entry = {"audio_filepath": f"{i}.wav", "duration": 0.4, "speaker": f"s{i % 4}"}
        entries.append(entry | {"id": f"u{i}", "text": word})
    write(made, "train", entries)
    write(made, "dev", entries[1::4])
    return made


def damaged(made: pathlib.Path) -> pathlib.Path:
    """Ten utterances, one of them not audio."""
    entries = []
    for i in range(10):
        soundfile.write(made / f"{i}.flac", np.full(4000, i, np.int16), RATE)
        entries.append({"audio_filepath": f"{i}.flac", "duration": 0.5, "text": "a", "id": str(i)})
    (made / "6.flac").write_bytes(b"fLaC and then nothing of use")
    write(made, "train", entries)
    return made


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for stream in a:
        assert a[stream].keys() == b[stream].keys()
        for name in a[stream]:
            assert a[stream][name].dtype == b[stream][name].dtype
            np.testing.assert_array_equal(a[stream][name], b[stream][name])


def tongues(made: pathlib.Path) -> pathlib.Path:
    """`noise`, and of it ar: 24 short utterances, every fourth not translated; en: 14 long ones."""
    noise(made)
    entries = [json.loads(line) for line in (made / "train.jsonl").read_text().splitlines()]
    ar = [e | {"lang": "ar", "text": f"b{'ab'[i % 2]}"} for i, e in enumerate(entries[:24])]
    ar = [e | ({"translation": f"x{i % 3} Y"} if i % 4 else {}) for i, e in enumerate(ar)]
    write(made, "ar", ar)
    en = [e | {"lang": "en", "text": f"c{i % 3}"} for i, e in enumerate(entries[24:38])]
    write(made, "en", en)
    write(made, "ar-dev", [ar[1], ar[5]])
    write(made, "en-dev", [entries[39] | {"text": "c0", "lang": "en"}])
    return made


def several(folder: pathlib.Path, *, without=(), edit=lambda data: None, **changes):
    """`config.data` for the streams asr/ar, asr/en and st/ar-en of `tongues`."""
    data = settings(folder, **{"train": "", "dev": "", "buckets": (0.7, 1.0), **changes})
    ar, en = (str(folder / f"{name}.jsonl") for name in ("ar", "en"))
    ar_dev, en_dev = (str(folder / f"{name}-dev.jsonl") for name in ("ar", "en"))
    taught = {"field": "translation", "measure": "bleu", "normalise": ("lower",)}
    data.streams["st/ar-en"] = defaults.stream(ar, ar_dev, **taught)
    data.streams["asr/en"] = defaults.stream(en, en_dev, buckets=(1.1, 1.4))
    data.streams["asr/ar"] = defaults.stream(ar, ar_dev, ar_dev)
    for name in without:
        del data.streams[name]
    edit(data)
    return data


def load_several(folder: pathlib.Path, *, seed=0, multiple=1, tokenizers=None, **changes):
    data = several(folder, **changes)
    config_checks.check(ConfigDict({"data": data, "seed": seed}))
    return load_corpus(data, seed=seed, multiple=multiple, tokenizers=tokenizers)


SEGMENTS = [Segment(0, 4, ("unlabelled",)), Segment(4, 6, JOINT), Segment(10, 3, ("labelled",))]


def damage(path, kind):
    whole = path.read_bytes()
    middle, rng = len(whole) // 2, np.random.default_rng(0)
    changed = {
        "half": whole[:middle],
        "nothing": b"",
        "garbage": rng.bytes(len(whole)),
        "bit": whole[:middle] + bytes([whole[middle] ^ 16]) + whole[middle + 1 :],
        "zeroed": whole[: middle - 1024] + bytes(2048) + whole[middle + 1024 :],
    }
    path.write_bytes(changed[kind])


KINDS = ("half", "nothing", "garbage", "bit", "zeroed")


def utterance(name: str, seconds: float) -> Utterance:
    """An utterance of an audio file that does not exist."""
    return Utterance(name, f"/{name}.wav", 0.0, seconds, None, "", "", f"train.jsonl:{name}")
