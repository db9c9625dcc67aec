"""Sources: manifests, URIs, decoding, resampling, LibriSpeech."""

import json
import os
import re

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from bljust_jax.common.errors import UserError
from bljust_jax.data import sources
from bljust_jax.data.sources import Utterance, open_source, read_audio
from tests.helpers.own_warnings import own_messages

RATE = 16000


def tone(seconds, hz=440.0, rate=RATE):
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(
        "float32"
    )


def write(folder, name, audio=None, rate=RATE, **kind):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(1.0, rate=rate) if audio is None else audio, rate, **kind)
    return path


def manifest(folder, *entries, name="m.jsonl"):
    lines = [e if isinstance(e, str) else json.dumps(e, ensure_ascii=False) for e in entries]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


def utterance(path, offset=0.0, duration=1.0):
    return Utterance("id", str(path), offset, duration, None, "", "s", "m.jsonl:3")


def test_a_manifest_with_all_fields_and_with_one(tmp_path):
    write(tmp_path, "a.wav")
    full = {"audio_filepath": "a.wav", "duration": 0.5, "offset": 0.25, "text": "e\u0301"}
    full |= {"lang": "fr", "speaker": 7, "id": "x", "translation": "o\u0308"}
    uri = manifest(tmp_path, full, "", {"audio_filepath": "a.wav"}, {**full, "id": None})
    first, second, third = open_source(uri)
    path = os.path.realpath(tmp_path / "a.wav")
    assert first == Utterance(*("x", path, 0.25, 0.5, "é", "fr", "7", f"{uri}:1"), translation="ö")
    assert second == Utterance("a.wav", path, 0.0, 1.0, None, "", "a.wav", f"{uri}:3")
    assert third.id == "a.wav@0.25"


def test_byte_order_mark_and_crlf(tmp_path):
    write(tmp_path, "a.wav")
    line = json.dumps({"audio_filepath": "a.wav", "duration": 1.0, "text": "a"})
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n\r\n")
    assert [u.text for u in open_source(str(tmp_path / "m.jsonl"))] == ["a"]


A = '"audio_filepath": "a.wav"'


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{nope", r"is not JSON: .*: column 2 \(char 1\)"),
        ('{"text": "a",', r"is not JSON: .*: column 1[34] "),
        ("[1]", "audio_filepath"),
        ('{"audio_filename": "a.wav"}', 'no "audio_filepath", but "audio_filename"; rename'),
        ('{"text": "a"}', 'no "audio_filepath"; add'),
        ('{"audio_filepath": 3}', "path of an audio file"),
        ('{"audio_filepath": "a\\u0000.wav"}', "path of an audio file"),
        ('{"audio_filepath": "in"}', "no such file"),
        (f'{{{A}, "text": "\\ud800"}}', "half a character"),
        (f'{{{A}, "duration": 1e999}}', "duration"),
        (f'{{{A}, "duration": 1{"0" * 400}}}', "duration"),
        ("[" * 100_000, "is not JSON"),
        (f'{{{A}, "duration": 0}}', "duration"),
        (f'{{{A}, "duration": -1}}', "duration"),
        (f'{{{A}, "duration": NaN}}', "duration"),
        (f'{{{A}, "duration": "2"}}', "duration"),
        (f'{{{A}, "offset": -0.5}}', "offset"),
        (f'{{{A}, "offset": 5}}', "past the end"),
        (f'{{{A}, "text": 3}}', "text must be a string, not 3"),
        (f'{{{A}, "translation": ["a"]}}', r"translation must be a string, not \['a'\]"),
        ('{"audio_filepath": "b.wav"}', "no such file"),
        ('{"audio_filepath": "../out.wav"}', "outside the data root"),
        ('{"audio_filepath": "/etc/hostname"}', "outside the data root"),
        ('{"audio_filepath": "link.wav"}', "outside the data root"),
    ],
)
def test_bad_manifest_lines_are_named(tmp_path, line, complaint):
    folder = tmp_path / "in"
    write(folder, "a.wav")
    out = write(tmp_path, "out.wav")
    (folder / "link.wav").symlink_to(out)
    uri = manifest(folder, "", line)
    with pytest.raises(UserError, match=complaint) as caught:
        open_source(uri)
    assert f"{uri}:2:" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_root_widens_what_a_manifest_may_name(tmp_path):
    write(tmp_path, "audio/a.wav")
    absolute = str(tmp_path / "audio" / "a.wav")
    (tmp_path / "lists").mkdir()
    uri = manifest(
        tmp_path / "lists",
        {"audio_filepath": "../audio/a.wav", "id": "r"},
        {"audio_filepath": absolute, "id": "a"},
    )
    with pytest.raises(UserError, match=r"config\.data\.root"):
        open_source(uri)
    assert [u.id for u in open_source(uri, str(tmp_path))] == ["r", "a"]


def test_sources_are_concatenated_and_ids_unique(tmp_path):
    write(tmp_path, "a.wav")
    one = manifest(tmp_path, {"audio_filepath": "a.wav", "id": "1"}, name="one.jsonl")
    two = manifest(tmp_path, {"audio_filepath": "a.wav", "id": "2"}, name="two.jsonl")
    assert [(u.id, u.part) for u in open_source(f"{one}+{two}")] == [("1", "one"), ("2", "two")]
    assert [u.part for u in open_source(one)] == [""]
    with pytest.raises(UserError, match=r"one\.jsonl:1: id '1' was used before, at .*one\.jsonl:1"):
        open_source(f"{one}+{one}")


def test_parts_have_names_of_their_own():
    uris = ["librispeech:LS/test-clean", "librispeech:test-other/", "a/dev.jsonl", "b/dev.jsonl"]
    uris += ["synthetic:tiny/dev", "dev-2.jsonl"]
    names = ["test-clean", "test-other", "dev", "dev-2", "dev-3", "dev-2-2"]
    assert sources._part_names(uris) == names


def test_a_plus_in_a_file_name_is_no_separator(tmp_path):
    write(tmp_path, "a.wav")
    assert open_source(manifest(tmp_path, {"audio_filepath": "a.wav"}, name="x+y.jsonl"))


@pytest.mark.parametrize("uri", ["nowhere:x", "data", "manifest:"])
def test_unknown_schemes_list_the_known_ones(uri):
    with pytest.raises(UserError, match=r"kaldi, .*librispeech, .*manifest"):
        open_source(uri)


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("kalid:data/train", "kaldi:data/train"),
        ("librispech:", "librispeech:REST"),
        ("lists/train.csv", "table:lists/train.csv"),
        ("train.tsv", "table:train.tsv"),
        ("{}", "folder:{}"),
        ("nowhere:x", ""),
        ("data", ""),
    ],
)
def test_what_may_have_been_meant(tmp_path, uri, meant):
    """The nearest scheme, or the one that reads such files."""
    with pytest.raises(UserError, match="cannot read") as caught:
        open_source(uri.format(tmp_path))
    _, _, hint = str(caught.value).partition("; did you mean ")
    assert hint == (f"'{meant.format(tmp_path)}'?" if meant else "")


def test_missing_and_empty_manifests(tmp_path):
    with pytest.raises(UserError, match="no such manifest"):
        open_source(str(tmp_path / "no.jsonl"))
    with pytest.raises(UserError, match=r"m\.jsonl: no utterance found: it is empty"):
        open_source(manifest(tmp_path, ""))
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(UserError, match=r"d\.jsonl: is a folder, not a manifest"):
        open_source(str(tmp_path / "d.jsonl"))
    with pytest.raises(UserError, match="is a folder: expected a"):
        open_source(str(tmp_path))
    (tmp_path / "latin.jsonl").write_bytes(b'\n{"text": "\xe9"}\n')
    with pytest.raises(UserError, match=r"latin\.jsonl:2: is not UTF-8.*save the file as UTF-8"):
        open_source(str(tmp_path / "latin.jsonl"))


def test_headers_that_cannot_be_read_are_faults_of_their_utterances(tmp_path):
    write(tmp_path, "a.wav")
    write(tmp_path, "silent.wav", np.zeros(0, np.int16))
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "nothing.flac").write_bytes(b"")
    names = ("a.wav", "silent.wav", "text.wav", "nothing.flac")
    found = open_source(manifest(tmp_path, *({"audio_filepath": name} for name in names)))
    assert [u.duration for u in found] == [1.0, 0.0, 0.0, 0.0]
    assert found[0].fault == ""
    assert re.search(r"m\.jsonl:2: .*silent\.wav holds no audio; remove it", found[1].fault)
    for line, u in enumerate(found[2:], start=3):
        assert re.search(rf"m\.jsonl:{line}: cannot read the header of .*; replace", u.fault)
    with pytest.raises(UserError, match="ends early"):
        read_audio(found[1])


JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
FIELDS = ("audio_filepath", "duration", "offset", "text", "lang", "speaker", "id", "translation")


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON | st.lists(JSON, max_size=2)), st.booleans())
def test_any_line_gives_an_utterance_or_one_line(tmp_path_factory, entry, right):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    if not folder.exists():
        write(folder, "a.wav")
    entry |= {"audio_filepath": "a.wav"} if right else {}
    (folder / "m.jsonl").write_text(json.dumps(entry) + "\n")
    try:
        (u,) = open_source(str(folder / "m.jsonl"))
    except UserError as error:
        u, message = None, str(error)
    if u is None:
        assert re.match(r"\S*m\.jsonl:1: [^\n]+$", message)
    else:
        assert u.duration > 0
        assert u.offset >= 0
        for field in (u.id, u.lang, u.speaker, u.text or "", u.translation or ""):
            field.encode()


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_pcm_is_read_bit_for_bit_and_sliced(tmp_path, name):
    samples = np.random.default_rng(0).integers(-32768, 32768, RATE).astype(np.int16)
    path = write(tmp_path, name, samples)
    assert np.array_equal(read_audio(utterance(path)), samples)
    part = read_audio(utterance(path, 0.25, 0.5))
    assert np.array_equal(part, samples[4000:12000])


def test_stereo_is_mixed_down(tmp_path):
    stereo = np.stack([np.full(RATE, 100), np.full(RATE, 300)], axis=1).astype(np.int16)
    path = write(tmp_path, "a.wav", stereo)
    assert np.all(read_audio(utterance(path)) == 200)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_other_rates_are_resampled(tmp_path, rate):
    path = write(tmp_path, "a.wav", tone(1.0, 440.0, rate), rate)
    audio = read_audio(utterance(path)) / 32768
    assert len(audio) == RATE
    # 16-bit storage and the resampler's pass band; 100 samples at either end are not compared.
    assert np.max(np.abs(audio - tone(1.0))[100:-100]) < 1e-3


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
@pytest.mark.parametrize("seconds", [0.5137, 1.0])
def test_lengths_at_other_rates_are_within_a_frame(tmp_path, rate, seconds):
    path = write(tmp_path, "a.flac", tone(seconds, 440.0, rate), rate)
    (u,) = open_source(manifest(tmp_path, {"audio_filepath": path.name}))
    assert abs(len(read_audio(u)) - seconds * RATE) <= 1  # one sample; a frame has 160


def test_24_bits_and_float_and_8_bits_are_the_same_sound(tmp_path):
    expected = np.round(tone(1.0) * 32768)
    for subtype, tolerance in [("PCM_24", 1), ("FLOAT", 1), ("DOUBLE", 1), ("PCM_U8", 257)]:
        path = write(tmp_path, "a.wav", tone(1.0), subtype=subtype)
        # rounding, on 8 bits that of a step of 256
        assert np.max(np.abs(read_audio(utterance(path)) - expected)) <= tolerance


@pytest.mark.parametrize("sample", [np.nan, np.inf])
def test_non_finite_samples_are_refused(tmp_path, sample):
    path = write(tmp_path, "a.wav", np.array([0.0, sample] * 8000, "float32"), subtype="FLOAT")
    with pytest.raises(UserError, match=r"m\.jsonl:3: .*a\.wav: .*not finite; replace"):
        read_audio(utterance(path))


def test_float_files_saturate(tmp_path):
    path = write(tmp_path, "a.wav", np.full(RATE, 1.5, "float32"), subtype="FLOAT")
    assert np.all(read_audio(utterance(path)) == 32767)


def test_segments_of_opus_equal_slices_of_the_whole(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE).astype("float32")
    path = write(tmp_path, "a.opus", noise, format="OGG", subtype="OPUS")
    whole = read_audio(utterance(path, 0.0, 3.0))
    for offset in (2.0, 0.7, 1.3):
        start = round(offset * RATE)
        part = read_audio(utterance(path, offset, 0.5))
        assert np.array_equal(part, whole[start : start + RATE // 2])
    with pytest.raises(ValueError, match="read-only"):
        part[0] = 1


def test_decoded_files_are_bounded_by_bytes():
    kept = sources._Decoded(100)
    for name in "abc":
        kept.put((name, 1), np.zeros(20, np.int16))  # 40 bytes each
    assert kept.get(("a", 1)) is None
    kept.get(("b", 1))
    kept.put(("d", 1), np.zeros(20, np.int16))
    assert kept.get(("c", 1)) is None
    kept.put(("e", 1), np.zeros(51, np.int16))
    assert kept.get(("e", 1)) is None
    assert len(kept.get(("b", 1))) == 20


def test_bad_audio_is_named(tmp_path):
    junk = tmp_path / "junk.flac"
    junk.write_bytes(b"fLaC" + bytes(100))
    short = write(tmp_path, "short.wav")
    for path, duration in [(junk, 1.0), (tmp_path / "gone.wav", 1.0), (short, 2.0)]:
        with pytest.raises(UserError, match=r"m\.jsonl:3") as caught:
            read_audio(utterance(path, 0.0, duration))
        assert str(path) in str(caught.value)


def test_durations_rounded_up_are_forgiven(tmp_path):
    path = write(tmp_path, "a.wav")
    assert len(read_audio(utterance(path, 0.0, 1.05))) == RATE


def test_a_truncated_flac_is_named(tmp_path):
    path = write(tmp_path, "a.flac", tone(4.0))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"a\.flac"):
        read_audio(utterance(path, 0.0, 4.0))


def test_real_opus_segments(speech):
    found = open_source(str(speech / "digits_ar" / "dev.jsonl"))
    assert len(found) == 780
    u = found[100]
    direct, rate = soundfile.read(u.path, dtype="float32")
    start = round(u.offset * rate)
    expected = np.clip(np.rint(direct * 32768), -32768, 32767)
    assert np.array_equal(read_audio(u), expected[start : start + round(u.duration * rate)])


def test_a_transcript_under_another_name_is_named(tmp_path, caplog):
    write(tmp_path, "a.wav")
    rows = [{"audio_filepath": "a.wav", "id": str(n), "sentence": "one"} for n in range(3)]
    uri = manifest(tmp_path, rows[0] | {"text": "one"}, *rows[1:])
    assert [u.text for u in open_source(uri)] == ["one", None, None]
    (line,) = own_messages(caplog)
    assert line == (
        f'{uri}: 2 of 3 lines have no "text" but a "sentence": rename that field to train and'
        " score on it"
    )
    caplog.clear()
    open_source(manifest(tmp_path, {"audio_filepath": "a.wav"}, name="audio.jsonl"))
    assert not own_messages(caplog)
