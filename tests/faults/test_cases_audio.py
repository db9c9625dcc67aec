"""Audio whose header, length or codec misleads libsndfile: read whole, or one line."""

import io
import logging
import re
import struct
import warnings

import numpy as np
import pytest
import soundfile

from bljust_jax.common.errors import UserError
from bljust_jax.data import containers, mpeg
from bljust_jax.data.sources import open_source, read_audio
from bljust_jax.inference import audio_files
from tests.helpers import corpora

RATE = 16000
NOISE = (0.1 * np.random.default_rng(0).standard_normal(2 * RATE)).astype(np.float32)
KINDS = [
    ("wav", {"subtype": "PCM_16"}),
    ("wav", {"subtype": "PCM_24", "format": "WAVEX"}),
    ("wav", {"subtype": "FLOAT"}),
    ("wav", {"subtype": "IMA_ADPCM"}),
    ("wav", {"subtype": "PCM_16", "format": "RF64"}),
    ("wav", {"subtype": "GSM610"}),
    ("w64", {"subtype": "PCM_16"}),
    ("aiff", {"subtype": "PCM_16"}),
    ("au", {"subtype": "PCM_16"}),
    ("au", {"subtype": "G721_32"}),
    ("caf", {"subtype": "PCM_16"}),
    ("sph", {"format": "NIST", "subtype": "PCM_16"}),
    ("voc", {"subtype": "PCM_16"}),
    ("svx", {"subtype": "PCM_16"}),
    ("avr", {"subtype": "PCM_16"}),
    ("mat", {"format": "MAT4", "subtype": "PCM_16"}),
    ("mat", {"format": "MAT5", "subtype": "PCM_16"}),
    ("sds", {"subtype": "PCM_16"}),
    ("ogg", {"format": "OGG", "subtype": "VORBIS"}),
    ("opus", {"format": "OGG", "subtype": "OPUS"}),
    ("flac", {"subtype": "PCM_16"}),
    ("mp3", {"subtype": "MPEG_LAYER_III"}),
]


def write(path, audio=NOISE, **kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        soundfile.write(path, audio, RATE, **kind)
    return path


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_transcribe_reads_the_header_of_a_whole_file_once(tmp_path, name, monkeypatch):
    opened, sound = [], containers.Sound
    monkeypatch.setattr(containers, "Sound", lambda source: opened.append(source) or sound(source))
    assert len(audio_files.read(str(write(tmp_path / name)), RATE)) == len(NOISE)
    assert len(opened) == 1


def only(folder, name, **fields):
    """The utterance of a manifest of one file."""
    uri = corpora.write(folder, "m", [{"audio_filepath": name, "text": "a", **fields}])
    (u,) = open_source(uri)
    return u


@pytest.mark.parametrize(("suffix", "kind"), KINDS)
def test_audio_cut_in_half_is_a_fault_or_an_error_and_whole_audio_is_read(tmp_path, suffix, kind):
    path = write(tmp_path / f"a.{suffix}", **kind)
    u = only(tmp_path, path.name)
    assert not u.fault
    assert abs(len(read_audio(u)) - len(NOISE)) < 0.05 * RATE
    cut = tmp_path / f"b.{suffix}"  # decoded files are kept by their path
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 5])
    u = only(tmp_path, cut.name)
    if not u.fault:  # the header is whole, and the end is missed while decoding
        with pytest.raises(UserError, match=r"ends early|cannot decode"):
            read_audio(u)
    else:
        assert re.search(r"m\.jsonl:1: .*(ends early|cannot read the header).*; replace", u.fault)


@pytest.mark.parametrize(("suffix", "kind"), [k for k in KINDS if k[0] not in ("caf", "flac")])
def test_transcribe_warns_of_audio_that_is_cut_and_reads_its_beginning(
    tmp_path, suffix, kind, caplog
):
    path = write(tmp_path / f"a.{suffix}", **kind)
    whole = audio_files.read(str(path), RATE)
    assert abs(len(whole) - len(NOISE)) < 0.05 * RATE
    assert not caplog.records
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
    found = audio_files.read(str(path), RATE)
    assert len(found) < 0.7 * len(whole) or suffix == "sds"
    assert len(caplog.records) == 1
    assert re.search(r"a\.\w+ ends (early|[\d.]+ s before the duration)", caplog.text)


HEADERS = [  # suffix, kind, place and format of the size of the samples
    ("wav", {"subtype": "PCM_16"}, 40, "<I"),
    ("wav", {"subtype": "PCM_16", "endian": "BIG"}, 40, ">I"),
    ("aiff", {"subtype": "PCM_16"}, 42, ">I"),
    ("au", {"subtype": "PCM_16"}, 8, ">I"),
]


@pytest.mark.parametrize(("suffix", "kind", "at", "form"), HEADERS)
@pytest.mark.parametrize("declared", [0, RATE])
def test_a_header_that_declares_too_little_is_a_fault_and_a_warning(
    tmp_path, suffix, kind, at, form, declared, caplog
):
    path = write(tmp_path / f"a.{suffix}", **kind)
    data = bytearray(path.read_bytes())
    (size,) = struct.unpack_from(form, data, at)
    extra = size - 2 * len(NOISE)  # AIFF counts eight bytes before the samples
    assert extra in (0, 8)
    struct.pack_into(form, data, at, declared + extra)
    path.write_bytes(data)
    u = only(tmp_path, path.name)
    held = f"holds 2.00 s of audio, but its header declares {declared / 2 / RATE:.2f} s"
    assert held in u.fault or "cannot read the header" in u.fault
    if held in u.fault:
        found = audio_files.read(str(path), RATE)
        assert len(found) == len(NOISE)
        assert held in caplog.text


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF - 36])
def test_the_length_of_a_streamed_wav_is_that_of_its_bytes(tmp_path, size, caplog):
    path = write(tmp_path / "a.wav", subtype="PCM_16")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 40, size)
    path.write_bytes(data)
    u = only(tmp_path, "a.wav")
    assert (u.fault, u.duration) == ("", 2.0)
    assert len(audio_files.read(str(path), RATE)) == len(read_audio(u)) == len(NOISE)
    assert not caplog.records


@pytest.mark.parametrize(
    "tail", [b"LIST" + struct.pack("<I", 20000) + b"x" * 20000, bytes(9999), b"ID3" + b"x" * 9999]
)
def test_what_follows_the_samples_without_being_any_is_no_fault(tmp_path, tail, caplog):
    path = write(tmp_path / "a.wav", subtype="PCM_16")
    path.write_bytes(path.read_bytes() + tail)
    assert only(tmp_path, "a.wav").fault == ""
    assert len(audio_files.read(str(path), RATE)) == len(NOISE)
    assert not caplog.records


@pytest.mark.parametrize("padding", [b"", b"\0"])
def test_a_chunk_after_an_odd_number_of_bytes_is_found(tmp_path, padding):
    path = write(tmp_path / "a.wav", NOISE[:-1], subtype="PCM_U8")
    data = path.read_bytes()[: 44 + len(NOISE) - 1]
    assert len(data) % 2
    path.write_bytes(data + padding + b"LIST" + struct.pack("<I", 20000) + b"x" * 20000)
    assert only(tmp_path, "a.wav").fault == ""


def test_a_flac_stream_without_a_length_is_read_to_its_end(tmp_path, caplog):
    path = write(tmp_path / "a.flac")
    expected = soundfile.read(path, dtype="int16")[0]
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # 36 bits of STREAMINFO, after magic, header and 13.5 bytes
    data[22:26] = bytes(4)
    path.write_bytes(data)
    u = only(tmp_path, "a.flac")
    assert (u.fault, u.duration) == ("", 2.0)
    np.testing.assert_array_equal(read_audio(u), expected)
    np.testing.assert_array_equal(audio_files.read(str(path), RATE), expected)
    middle = only(tmp_path, "a.flac", offset=0.5, duration=1.0)
    np.testing.assert_array_equal(read_audio(middle), expected[RATE // 2 : RATE * 3 // 2])
    assert not caplog.records


def test_a_length_beyond_all_memory_allocates_nothing(tmp_path, caplog):
    """2 ** 35 frames, 128 GiB of float32, by one flipped bit."""
    path = write(tmp_path / "a.flac")
    data = bytearray(path.read_bytes())
    data[21] |= 8
    path.write_bytes(data)
    u = only(tmp_path, "a.flac")
    with pytest.raises(UserError, match=r"(ends early: 2\.00 of 2\d{6}|cannot decode)"):
        read_audio(u)
    assert len(audio_files.read(str(path), RATE)) == len(NOISE)
    assert "before the duration in its header" in caplog.text


CODECS = [
    ("wav", "GSM610"),
    ("wav", "G721_32"),
    ("wav", "NMS_ADPCM_16"),
    ("wav", "NMS_ADPCM_32"),
    ("au", "G721_32"),
    ("au", "G723_24"),
    ("au", "G723_40"),
    ("aiff", "GSM610"),
    ("aiff", "DWVW_16"),
    ("w64", "GSM610"),
    ("xi", "DPCM_16"),
]


@pytest.mark.parametrize(("suffix", "subtype"), CODECS)
def test_codecs_that_cannot_seek_are_read_from_any_offset(tmp_path, suffix, subtype):
    path = write(tmp_path / f"a.{suffix}", subtype=subtype)
    u = only(tmp_path, path.name)
    whole = read_audio(u)
    assert not u.fault
    assert u.duration == pytest.approx(len(NOISE) / soundfile.info(path).samplerate, abs=0.05)
    found = audio_files.read(str(path), RATE)[: len(whole)]
    np.testing.assert_allclose(found, whole, atol=1)  # XI is at 44.1 kHz: resampled in blocks
    part = read_audio(only(tmp_path, path.name, offset=0.25, duration=0.25))
    np.testing.assert_array_equal(part, whole[RATE // 4 : RATE // 2])


@pytest.mark.parametrize("name", ["a.raw", "a.RAW"])
def test_the_content_of_a_raw_name_decides(tmp_path, name, caplog):
    (tmp_path / name).write_bytes(write(tmp_path / "a.wav").read_bytes())
    u = only(tmp_path, name)
    assert (u.fault, u.duration) == ("", 2.0)
    np.testing.assert_array_equal(audio_files.read(u.path, RATE), read_audio(u))
    (tmp_path / name).write_bytes(NOISE.tobytes())
    assert "Format not recognised; replace or remove it" in only(tmp_path, name).fault
    with pytest.raises(UserError, match=r"cannot decode .*: Format not recognised; replace"):
        read_audio(only(tmp_path, name, duration=2.0))
    with pytest.raises(UserError, match=r"cannot decode .*: Format not recognised; convert"):
        audio_files.read(u.path, RATE)


# MP3


def without_count(path):
    """The file without its first frame, which holds the number of frames."""
    data = path.read_bytes()
    start = mpeg.audio_start(data)
    first = mpeg.frame_at(data, start)
    assert mpeg.count(data) is None
    path.write_bytes(data[start + first.size :])
    return path


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_an_mp3_file_without_a_count_of_frames_is_read_to_its_end(tmp_path, rate, channels, caplog):
    """Loud noise first: by the bit rate of the first frames the file would be far shorter."""
    time = np.arange(2 * rate) / rate
    audio = np.concatenate([0.5 * np.random.default_rng(0).uniform(-1, 1, rate), 0 * time])
    audio = np.repeat(audio[:, None], channels, 1).astype(np.float32)
    path, how = tmp_path / "a.mp3", {"bitrate_mode": "VARIABLE", "compression_level": 0.5}
    soundfile.write(path, audio, rate, format="MP3", subtype="MPEG_LAYER_III", **how)
    without_count(path)
    assert abs(soundfile.info(path).duration - 3) > 0.3  # libsndfile alone
    u = only(tmp_path, "a.mp3")
    assert u.fault == ""
    assert u.duration == pytest.approx(3, abs=0.15)
    assert len(read_audio(u)) == round(u.duration * RATE)
    assert len(audio_files.read(str(path), RATE)) == pytest.approx(len(read_audio(u)), abs=1)
    assert not caplog.records


@pytest.mark.parametrize("counted", [True, False])
def test_an_mp3_stream_in_memory_is_read_as_the_file_is(tmp_path, counted):
    """As in a shard; longer than the beginning in which tags are looked for."""
    path = tmp_path / "a.mp3"
    noise = np.random.default_rng(0).uniform(-1, 1, 20 * RATE).astype(np.float32)
    soundfile.write(path, noise, RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0)
    if not counted:
        without_count(path)
    assert path.stat().st_size > 1.2 * containers.HEAD
    with containers.open_sound(str(path)) as file:
        expected = np.concatenate(list(containers.blocks(file)))
    stream = io.BytesIO(path.read_bytes())
    assert containers.length(stream) == containers.length(str(path))
    with containers.open_sound(stream) as file:
        np.testing.assert_array_equal(np.concatenate(list(containers.blocks(file))), expected)
    assert len(expected) == pytest.approx(20 * RATE, abs=0.15 * RATE)


def test_a_constant_bit_rate_tags_and_garbage_between_frames_are_counted(tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, NOISE, RATE, format="MP3", bitrate_mode="CONSTANT")
    data = without_count(path).read_bytes()
    whole = mpeg.count(data)
    assert whole.frames * whole.samples == pytest.approx(len(NOISE), abs=4 * whole.samples)
    id3 = b"ID3\x04\0\0" + bytes([0, 0, 1, 0]) + b"\xff\xfb\x90" * 42 + b"\0\0"
    assert mpeg.count(id3 + data) == whole._replace(start=len(id3))
    assert mpeg.count(data + b"TAG" + bytes(125)).frames == whole.frames
    size = mpeg.frame_at(data, 0).size
    assert mpeg.count(data[: 2 * size] + b"\xff\xe0junk" + data[2 * size :]).frames == whole.frames
    assert mpeg.count(data[:-9]) == whole._replace(frames=whole.frames - 1, cut=True)
    assert mpeg.count(b"\xff" * 999) is mpeg.count(b"") is None


def test_what_is_saved_as_mp3_without_being_any_is_named_so(tmp_path):
    for name, content in (("page.mp3", b"<html>404</html>"), ("none.mp3", b"")):
        (tmp_path / name).write_bytes(content)
        assert f"{name}: does not decode as MP3; replace" in only(tmp_path, name).fault
        with pytest.raises(UserError, match=f"{name}: does not decode as MP3; convert"):
            audio_files.read(str(tmp_path / name), RATE)


# Unlikely samples


@pytest.mark.parametrize(
    ("audio", "kind", "words"),
    [
        (np.stack([NOISE, -NOISE], 1), {"subtype": "PCM_16"}, "channels that cancel each other"),
        (NOISE * 32768, {"subtype": "FLOAT"}, r"samples up to 1\d{4}\b.* range is -1 to 1"),
    ],
)
def test_antiphase_channels_and_integers_as_floats_are_doubted(
    tmp_path, audio, kind, words, caplog
):
    path = write(tmp_path / "a.wav", audio, **kind)
    with pytest.raises(UserError, match=f"cannot decode .*{words}.*; replace"):
        read_audio(only(tmp_path, "a.wav"))
    assert len(audio_files.read(str(path), RATE)) == len(NOISE)
    assert re.search(words, caplog.text)


def test_silence_and_loud_floats_are_not(tmp_path, caplog):
    for audio in (np.zeros((999, 2), np.float32), 30 * NOISE):
        write(tmp_path / "a.wav", audio, subtype="FLOAT")
        assert len(read_audio(only(tmp_path, "a.wav"))) == len(audio)
        audio_files.read(str(tmp_path / "a.wav"), RATE)
    assert not caplog.records


def test_a_sample_rate_that_no_recording_has_is_an_error(tmp_path):
    for rate in (1, 2**31 - 1):
        data = bytearray(write(tmp_path / "a.wav", subtype="PCM_16").read_bytes())
        struct.pack_into("<I", data, 24, rate)
        (tmp_path / "a.wav").write_bytes(data)
        with pytest.raises(soundfile.SoundFileError, match=f"{rate} samples per second"):
            containers.open_sound(io.BytesIO(data))
        assert f"{rate} samples per second; replace" in only(tmp_path, "a.wav").fault


@pytest.fixture(autouse=True)
def records(caplog):
    caplog.set_level(logging.WARNING)
