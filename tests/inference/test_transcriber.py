"""Transcription: files of all kinds, windows that join without a seam, words with their times,
batches."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data import containers
from bljust_jax.data.sources import Utterance, read_audio, with_durations
from bljust_jax.data.tokenizer import learn_pieces
from bljust_jax.decoding.ctc_beam import BeamSearch
from bljust_jax.decoding.greedy import collapse
from bljust_jax.inference import audio_files, windows
from bljust_jax.inference.alignment import Label, aligned_labels, best_labels, words_of
from bljust_jax.inference.batching import DecodedRow
from bljust_jax.inference.transcriber import Failure, Transcript, WindowOptions, Word, transcribe
from bljust_jax.ops import log_mel
from tests.helpers.fake_recognizer import (
    CLASSES,
    FRAME,
    RATE,
    SECOND,
    TOKENIZER,
    fake,
    sound,
    store,
)

# Files


@pytest.mark.parametrize(
    ("name", "rate", "channels", "how"),
    [
        ("a.wav", 16000, 1, {}),
        ("b.wav", 8000, 2, {"subtype": "ULAW"}),
        ("c.mp3", 44100, 2, {}),
        ("d.flac", 22050, 1, {}),
        ("e.ogg", 48000, 1, {"subtype": "OPUS"}),
        ("f.au", 16000, 1, {"subtype": "FLOAT"}),
    ],
)
def test_files_are_read_as_for_training(name, rate, channels, how, tmp_path):
    """The same bits as `read_audio`, though decoded and resampled in blocks."""
    rng = np.random.default_rng(0)
    audio = 0.2 * rng.standard_normal((2 * containers.BLOCK // channels + 12345, channels))
    path = store(tmp_path / name, audio.squeeze().astype(np.float32), rate, **how)
    (u,) = with_durations([Utterance("a", path, 0.0, 0.0, None, "", "")])
    found = audio_files.read(path, 16000)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, read_audio(u, 16000))


def test_files_that_cannot_be_read_are_told_in_their_place(tmp_path):
    good = store(tmp_path / "good.wav", sound((0, "ab")))
    flac = tmp_path / "half.flac"
    store(flac, np.random.default_rng(0).integers(-999, 999, 99999).astype(np.int16))
    flac.write_bytes(flac.read_bytes()[:99999])
    (tmp_path / "text.wav").write_text("no audio at all")
    (tmp_path / "bare.raw").write_bytes(b"\0" * 999)
    nan = store(tmp_path / "nan.wav", np.full(99, np.nan, np.float32), subtype="FLOAT")
    names = ["none.wav", "half.flac", "text.wav", "bare.raw", ""]
    paths = [good, *(str(tmp_path / name) for name in names), nan, good]
    found = list(audio_files.read_all(iter(paths), RATE))
    assert [f.path for f in found] == paths
    assert all(isinstance(f, audio_files.Recording) for f in (found[0], found[-1]))
    reasons = [f.reason for f in found[1:-1]]
    said = [
        "No such file",
        "lost sync",
        "not recognised",
        "not recognised",
        "Is a directory",
        "finite",
    ]
    for reason, path, words in zip(reasons, paths[1:-1], said, strict=True):
        assert path in reason
        assert words in reason
        assert "\n" not in reason


# Windows


@pytest.mark.parametrize("samples", [0, 1, 300, 301, 355, 420, 421, 1000, 2345])
@pytest.mark.parametrize("overlap", [10, 40, 70])
def test_windows_cover_a_recording_and_join_to_the_whole(samples, overlap):
    """Paths that are functions of the frame's place: what is joined is the path of the whole."""
    hop, length = 10, 300
    whole = np.random.default_rng(samples).integers(0, 3, samples // hop)
    cuts = windows.cut(samples, length, overlap, hop)
    assert (cuts[0].start, cuts[-1].stop) == (0, samples)
    assert all(start % hop == 0 and stop - start <= length for start, stop in cuts)
    for a, b in itertools.pairwise(cuts):
        assert b.start + 2 * overlap <= a.stop == a.start + length
    if len(cuts) > 1:
        assert cuts[-1].stop - cuts[-1].start > length - hop
    places = np.arange(len(whole))[:, None]
    spans = [slice(start // hop, stop // hop) for start, stop in cuts]
    joined = windows.join(cuts, [DecodedRow(whole[s], places[s]) for s in spans], overlap, hop)
    for name, expected in (("path", whole), ("log_probs", places)):
        found = np.concatenate([getattr(piece, name) for piece in joined])
        np.testing.assert_array_equal(found, expected)
    for (a, b), (left, right) in zip(
        itertools.pairwise(spans), itertools.pairwise(joined), strict=True
    ):
        margin = overlap // hop // 2
        assert b.start + margin <= right.log_probs[0, 0]
        assert left.log_probs[-1, 0] < a.stop - margin


def test_a_label_that_windows_place_a_frame_apart_is_kept_once():
    """Every window shifts its labels by -1, 0 or 1 frames; wherever they stand, each is decoded
    once, as there is a blank between any two that both windows agree on."""
    rng = np.random.default_rng(0)
    hop, length, overlap = 10, 400, 80
    for _ in range(100):
        places = np.cumsum(rng.integers(5, 9, 40))
        cuts = windows.cut(int(places[-1] + 9) * hop, length, overlap, hop)
        outputs = []
        for start, stop in cuts:
            path = np.zeros((stop - start) // hop, np.int32)
            own = places + rng.integers(-1, 2) - start // hop
            inside = (own >= 0) & (own < len(path))
            path[own[inside]] = 1 + np.arange(40)[inside]
            outputs.append(DecodedRow(path, None))
        joined = windows.join(cuts, outputs, overlap, hop)
        assert collapse(np.concatenate([p.path for p in joined])) == list(range(1, 41))


@pytest.mark.parametrize(("length", "overlap"), [(305, 10), (300, 15), (300, 80), (300, 0)])
def test_windows_that_cannot_be_joined_are_refused(length, overlap):
    with pytest.raises(ValueError, match="no windows"):
        windows.cut(1000, length, overlap, 10)


@functools.cache
def mel_classes():
    """A model with the strides of a Conformer that looks no further than its subsampling does."""
    weights = np.random.default_rng(0).normal(size=(20, CLASSES)).astype(np.float32)

    @jax.jit
    def predict(audio, lengths):
        mel, frames = log_mel.log_mel(audio, lengths, n_mels=20)
        mel = jnp.pad(mel, ((0, 0), (0, -mel.shape[1] % 4), (0, 0)))
        x = mel.reshape(len(mel), -1, 4, 20).mean(axis=2)
        x = x - x.mean(axis=2, keepdims=True)
        return jnp.matmul(x, weights, precision="highest"), (frames + 3) // 4

    return predict, lambda samples: int(log_mel.frame_count(samples) + 3) // 4


def test_a_local_model_says_the_same_in_windows(tmp_path):
    """Exactly: text and times of a recording in one window, and in nine of 4 s."""
    noise = np.random.default_rng(1).integers(-3000, 3000, round(21.37 * RATE)).astype(np.int16)
    path = store(tmp_path / "noise.wav", noise)
    model, shapes = fake(*mel_classes())
    (whole,) = transcribe(model, [path], WindowOptions(30.0, 4.0))
    (parts,) = transcribe(model, [path], WindowOptions(4.0, 0.5))
    assert len(whole.words) > 5
    assert parts == whole
    assert sorted({samples for _, samples in shapes}) == [4 * RATE, 30 * RATE]


# Words and their times


def test_words_have_the_times_of_their_frames(tmp_path):
    """47 s in two windows: a word before the join, one on it, and one in the last frame."""
    pieces = [(50, "aab_c"), (60, " "), (22 * SECOND, "dd____e"), (600, " "), (1174, "f")]
    path = store(tmp_path / "a.flac", np.pad(sound(*pieces), (0, 300)))
    model, shapes = fake()
    (found,) = transcribe(model, [path], WindowOptions())
    assert shapes == [(2, 30 * RATE)]
    words = [Word("abc", 2.0, 2.2), Word("de", 22.0, 22.28), Word("f", 46.96, 47.0)]
    assert found == Transcript(path, "abc de f", words, (1175 * FRAME + 300) / RATE)


def test_a_word_ends_with_its_file(tmp_path):
    """An encoder may round its frames up: the last one begins inside the file and ends after it."""

    @jax.jit
    def always_a(audio, lengths):
        logits = jnp.zeros((*audio.shape[:1], -(-audio.shape[1] // FRAME), CLASSES))
        return logits.at[:, :, 2].set(1.0), -(-lengths // FRAME)

    path = store(tmp_path / "a.wav", sound((0, "____"))[:-321])
    model, _ = fake(always_a, lambda samples: -(-samples // FRAME))
    (found,) = transcribe(model, [path], WindowOptions())
    assert found.words == [Word("a", 0.0, 0.139)]  # 2239 samples


@pytest.mark.parametrize(
    "audio", [sound((0, "_" * 50)), np.zeros(0, np.int16), sound((0, "a"))[1:]]
)
def test_silence_and_less_than_a_frame_are_no_words(audio, tmp_path):
    path = store(tmp_path / "a.wav", audio)
    for search in (None, BeamSearch(TOKENIZER.symbols, beam=2)):
        (found,) = transcribe(fake()[0], [path], WindowOptions(), search)
        assert (found.text, found.words) == ("", [])


def test_the_best_path_is_its_own_alignment():
    """Random posteriors: labels read off the path stand where `ctc_align` puts them."""
    rng = np.random.default_rng(0)
    for frames in (1, 33):
        log_probs = np.array(jax.nn.log_softmax(2 * rng.normal(size=(frames, 5))), np.float32)
        path = log_probs.argmax(axis=1)
        labels = best_labels(path)
        assert [label.id for label in labels] == collapse(path)
        assert labels == aligned_labels(log_probs, collapse(path))


def test_a_beam_of_one_is_the_best_path_with_its_times(tmp_path):
    noise = np.random.default_rng(1).integers(-3000, 3000, 6 * RATE).astype(np.int16)
    path = store(tmp_path / "noise.wav", noise)
    model, _ = fake(*mel_classes())
    for settings in (WindowOptions(), WindowOptions(4.0, 0.5)):
        (plain,) = transcribe(model, [path], settings)
        (found,) = transcribe(model, [path], settings, BeamSearch(TOKENIZER.symbols, beam=1))
        assert len(plain.words) > 2
        assert found == plain


def test_words_of_pieces_and_of_units_without_spaces():
    pieces = learn_pieces(["the cat sat on the mat", "the hat", "a cat at"], ("lower",), "bpe", 20)
    ids = pieces.encode("the cat at the mat").tolist()
    labels = [Label(n, 2 * k, 2 * k + 1) for k, n in enumerate(ids)]
    groups = words_of(labels, pieces.symbols)
    assert [pieces.decode([x.id for x in group]) for group in groups] == [
        *("the", "cat", "at", "the", "mat")
    ]
    spaces = [label for group in groups for label in group if pieces.symbols[label.id - 1] == "▁"]
    assert spaces == []
    digits = [Label(2, 0, 1), Label(3, 4, 5)]
    assert words_of(digits, ("一", "二", "三")) == [digits]
    assert words_of([], ("a",)) == []


# Batches


def test_files_share_batches_of_few_shapes_and_keep_their_order(tmp_path):
    rng = np.random.default_rng(0)
    seconds = rng.permutation([0.5, 1, 2, 3, 5, 6, 7, 9, 12, 20, 29, 31, 45, 1.5, 2.5])
    letters = TOKENIZER.symbols[1:]
    paths = [
        store(tmp_path / f"{n}.wav", sound((9, letters[n]), frames=round(length * SECOND)))
        for n, length in enumerate(seconds)
    ]
    model, shapes = fake()
    seconds_done = []
    found = list(
        transcribe(model, paths, WindowOptions(batch_seconds=60.0), progress=seconds_done.append)
    )
    assert [f.path for f in found] == paths
    assert "".join(f.text for f in found) == "".join(letters[: len(paths)])
    assert sum(seconds_done) == pytest.approx(sum(f.seconds for f in found))
    assert len(shapes) == len(seconds_done) < len(paths)
    assert {samples / RATE for _, samples in shapes} == {3.75, 7.5, 15, 30}
    assert all(rows * samples <= 60 * RATE for rows, samples in shapes)
    assert all(rows & (rows - 1) == 0 for rows, _ in shapes)


def test_rows_are_a_multiple_of_the_devices_and_audio_waits_on_disk(tmp_path):
    """Two rounds of 2 s of audio: after the first result no more was read than a round and what
    waits."""
    path = store(tmp_path / "a.wav", sound((0, "a"), frames=SECOND))
    asked = []

    def paths():
        for n in range(30):
            asked.append(n)
            yield path

    model, shapes = fake()
    found = transcribe(model._replace(multiple=8), paths(), WindowOptions(batch_seconds=0.25))
    assert next(found).text == "a"
    assert len(asked) <= 2 + audio_files.AHEAD
    assert len(list(found)) == 29
    assert {rows for rows, _ in shapes} == {8}


def test_a_failure_is_a_result_of_its_own(tmp_path):
    good = store(tmp_path / "a.wav", sound((0, "a")))
    found = list(transcribe(fake()[0], ["none.wav", good, "none.wav"], WindowOptions()))
    assert [type(f) for f in found] == [Failure, Transcript, Failure]


def test_a_batch_that_does_not_fit_is_a_mistake(tmp_path):
    def predict(audio, lengths):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    path = store(tmp_path / "a.wav", sound((0, "a")))
    with pytest.raises(UserError, match="lower --batch_seconds"):
        list(transcribe(fake(predict)[0], [path], WindowOptions()))
