"""Synthetic corpora: reproducible, disjoint splits, audible speech."""

import dataclasses
import importlib.metadata
import itertools
import json
import os
import pathlib
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile

from bljust_jax.common.errors import UserError
from bljust_jax.data import synthetic
from configs import quickstart

COMMANDS = synthetic.CORPORA["commands"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return synthetic.make_corpus("tiny", cache=tmp_path_factory.mktemp("cache"))


def rows(folder: pathlib.Path, split: str) -> list[dict]:
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def files(folder: pathlib.Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.slow
def test_the_same_settings_give_the_same_bytes(tiny, tmp_path):
    again = synthetic.make_corpus("tiny", cache=tmp_path)
    assert again.name == tiny.name
    assert files(again) == files(tiny)


def test_manifests_describe_the_audio(tiny):
    for split, count in zip(synthetic.SPLITS, (48, 8, 8), strict=True):
        assert len(rows(tiny, split)) == count
        for row in rows(tiny, split):
            info = soundfile.info(tiny / row["audio_filepath"])
            assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
            assert info.frames == round(row["duration"] * 16_000)
            assert 0.5 < row["duration"] < 2.0
    ids = [row["id"] for split in synthetic.SPLITS for row in rows(tiny, split)]
    assert len(set(ids)) == len(ids)
    assert not list(tiny.parent.glob(".*")), "nothing of the making is left behind"


def test_audio_is_speech_between_short_silences(tiny):
    for row in rows(tiny, "train"):
        audio = soundfile.read(tiny / row["audio_filepath"])[0]
        assert 0.2 < np.abs(audio).max() < 0.95, "neither faint nor clipped"
        power = np.square(audio[: len(audio) // 160 * 160]).reshape(-1, 160).mean(axis=1)
        # At SNR >= 15 dB speech frames are 6 dB above the noise at both ends.
        speech = np.flatnonzero(power > 4 * max(power[:4].mean(), power[-4:].mean()))
        assert speech[0] <= 25
        assert len(power) - speech[-1] <= 30
        assert len(speech) > 0.3 * len(power)


def test_different_words_differ_more_than_repetitions():
    """Smoothed log spectra differ less between two renderings of a word than between two words."""
    espeak = synthetic.Espeak()

    def spectrum(word: str, rate: int, pitch: int) -> np.ndarray:
        audio = np.frombuffer(espeak.speak(word, "en-us+m1", rate, pitch, 0), np.int16)
        frames = audio[: len(audio) // 512 * 512].reshape(-1, 512) * np.hanning(512)[None, :]
        power = np.square(np.abs(np.fft.rfft(frames)))[:, 1:].reshape(len(frames), 32, 8).mean(2)
        thirds = np.array_split(np.log(power + 1e6), 3)
        return np.concatenate([third.mean(axis=0) for third in thirds])

    words = ["red", "green", "kitchen", "office", "seven"]
    one = [spectrum(word, 150, 50) for word in words]
    same = [np.linalg.norm(spectrum(w, 155, 54) - x) for w, x in zip(words, one, strict=True)]
    other = [np.linalg.norm(a - b) for a, b in itertools.combinations(one, 2)]
    assert max(same) < 0.7 * min(other), (same, other)


@pytest.mark.parametrize("name", ["commands", "tiny"])
def test_dev_and_test_hold_sentences_and_voices_unseen_in_train(name):
    settings = synthetic.CORPORA[name]
    scripts = {split: synthetic.script(settings, split) for split in synthetic.SPLITS}
    assert tuple(map(len, scripts.values())) == settings.utterances
    for a, b in itertools.combinations(synthetic.SPLITS, 2):
        for field in ("text", "speaker", "id"):
            one, other = ({getattr(line, field) for line in scripts[s]} for s in (a, b))
            assert not one & other, (a, b, field)
    spoken = {word for line in scripts["train"] for word in line.text.split()}
    for split in ("dev", "test"):
        assert {word for line in scripts[split] for word in line.text.split()} <= spoken


def test_commands_cover_their_vocabulary_evenly():
    texts = [line.text for line in synthetic.script(COMMANDS, "train")]
    counts = Counter(word for text in texts for word in set(text.split()))
    assert len(counts) == 53
    assert min(counts.values()) >= 20
    speakers = [line.speaker for line in synthetic.script(COMMANDS, "train")]
    assert {speakers.count(speaker) for speaker in speakers} == {62, 63}


def test_overfit_is_one_set_three_times(tmp_path):
    folder = synthetic.make_corpus("overfit", cache=tmp_path)
    assert len({row["text"] for row in rows(folder, "train")}) == 8
    assert rows(folder, "train") == rows(folder, "dev") == rows(folder, "test")


def test_a_sentence_is_a_product_of_alternatives():
    assert synthetic.sentences("on|off the SIDE") == [
        f"{switch} the {side}" for switch in ("on", "off") for side in ("left", "right", "back")
    ]


def test_every_setting_names_another_folder():
    base = synthetic.fingerprint(COMMANDS)
    changes = {"seed": 1, "same": True, "rate": (130, 181), "silence": (0.05, 0.11)}
    others = {
        synthetic.fingerprint(dataclasses.replace(COMMANDS, **{key: value}))
        for key, value in changes.items()
    }
    assert len(others | {base}) == len(changes) + 1


@pytest.mark.slow
def test_several_processes_may_make_one_corpus(tmp_path, monkeypatch):
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: synthetic.make_corpus("overfit", cache=tmp_path), range(2)))
    assert made[0] == made[1]
    assert [path.name for path in tmp_path.iterdir()] == [made[0].name]
    monkeypatch.setattr(synthetic, "_make", lambda *_: pytest.fail("made twice"))
    assert synthetic.make_corpus("overfit", cache=tmp_path) == made[0]


def test_noise_has_the_drawn_snr():
    settings = dataclasses.replace(COMMANDS, snr_db=(20.0, 20.0), peak=(0.5, 0.5))
    tone = np.sin(np.arange(16_000) * 0.3).astype(np.float32)
    audio = synthetic.record(tone, settings, key=1) / 32767
    quiet = dataclasses.replace(settings, snr_db=(200.0, 200.0))
    clean = synthetic.record(tone, quiet, key=1) / 32767
    snr = 10 * np.log10(0.125 / np.mean((audio - clean) ** 2))  # a sine of 0.5 has power 1/8
    assert snr == pytest.approx(20.0, abs=0.1)  # ends off zero crossings: below 0.1 dB
    assert 17_600 <= len(audio) <= 19_200


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"voices": ("en-gb",)}, r"cannot use the voice en-gb\+\w+: error 2"),
        ({"variants": ("m99", "f2", "f4")}, "no voice variant m99"),
    ],
)
def test_an_espeak_error_is_one_line(tmp_path, monkeypatch, change, reason):
    settings = dataclasses.replace(synthetic.CORPORA["overfit"], **change)
    monkeypatch.setitem(synthetic.CORPORA, "wrong", settings)
    with pytest.raises(UserError, match=reason) as error:
        synthetic.make_corpus("wrong", cache=tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_voice_is_one_line_with_the_cure(tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match=r"pip install espeakng-loader.*config\.data\.train"):
        synthetic.make_corpus("overfit", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="commands, tiny, overfit"):
        synthetic.make_corpus("comands")


def test_reader_gives_utterances_and_names_the_splits(monkeypatch, tiny):
    from bljust_jax.data.readers.synthetic import read

    monkeypatch.setattr(synthetic, "cache_folder", lambda: tiny.parent)
    utterances = read("tiny/dev", "")
    assert [u.id for u in utterances] == [row["id"] for row in rows(tiny, "dev")]
    assert [u.text for u in utterances] == [row["text"] for row in rows(tiny, "dev")]
    for rest in ("tiny", "tiny/valid"):
        with pytest.raises(UserError, match="SPLIT one of train, dev, test"):
            read(rest, "")


def test_the_cache_follows_the_desktop_convention(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert synthetic.cache_folder() == tmp_path / "bljust_jax" / "synthetic"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert synthetic.cache_folder() == tmp_path / ".cache" / "bljust_jax" / "synthetic"


def test_the_library_is_loaded_in_the_speaking_process_only():
    code = (
        "import sys, tempfile; from bljust_jax.data import synthetic\n"
        "with tempfile.TemporaryDirectory() as cache:\n"
        "    synthetic.make_corpus('overfit', cache=cache)\n"
        "assert 'espeakng_loader' not in sys.modules and 'jax' not in sys.modules"
    )
    root = pathlib.Path(synthetic.__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "synthetic:overfit: synthesising 8 utterances, once\n"


@pytest.mark.parametrize("name", ["tiny", "overfit"])
def test_no_test_captures_the_log_of_corpus_creation(capsys, name):
    assert synthetic.make_corpus(name).is_dir()
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_no_test_captures_that_log_with_an_empty_cache(tmp_path):
    """Run the test above with an empty cache, as on a new machine."""
    node = f"{__file__}::{test_no_test_captures_the_log_of_corpus_creation.__name__}"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", node],
        cwd=pathlib.Path(synthetic.__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert len(list((tmp_path / "bljust_jax" / "synthetic").iterdir())) == 2


@pytest.mark.slow
def test_eight_utterances_are_overfitted(tmp_path):
    """`configs/quickstart.py:overfit`, the first check of a new installation, reaches WER 0."""
    from bljust_jax.train import loop

    config = quickstart.get_config("overfit")
    config.mesh.data = 1
    config.compile_cache = ""
    final = loop.run(config, tmp_path)
    assert final["dev/utterances"] == 8
    assert final["dev/wer"] == 0
