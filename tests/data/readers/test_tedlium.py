"""Reader of TED-LIUM."""

import os
import shutil

import numpy as np
import pytest
import soundfile

from bljust_jax.common.errors import UserError
from bljust_jax.data.readers import tedlium
from bljust_jax.data.sources import open_source, read_audio

RATE = 16000
SAMPLES = np.random.default_rng(0).integers(-9999, 9999, 3 * RATE).astype(np.int16)
LINES = """;; a comment
TalkA_2010 1 inter_segment_gap 0 0.5 <o,,unknown> ignore_time_segment_in_scoring

TalkA_2010 1 TalkA_2010 0.50 1.25 <o,f0,female> it 's {NOISE} the(2) e\u0301tude <sil> of <unk>
TalkA_2010 1 TalkA_2010 1.25 3.00 <NA> we don 't give 'em our parents '
"""


def talk(folder, name="TalkA_2010", lines=LINES, samples=SAMPLES):
    for part in ("sph", "stm"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    path = folder / "sph" / f"{name}.sph"
    soundfile.write(path, samples, RATE, format="NIST", subtype="PCM_16")
    (folder / "stm" / f"{name}.stm").write_text(lines, encoding="utf-8")
    return path


def test_segments_of_a_talk(tmp_path, caplog):
    path = talk(tmp_path / "dev")
    first, second = open_source(f"tedlium:{tmp_path}/dev")
    assert (first.id, second.id) == ("TalkA_2010-0000500-0001250", "TalkA_2010-0001250-0003000")
    assert (first.path, first.offset, first.duration) == (str(path), 0.5, 0.75)
    assert (first.speaker, first.lang) == ("TalkA_2010", "en")
    assert first.text == "it's the étude of"
    assert second.text == "we don't give 'em our parents'"
    assert first.line.endswith("TalkA_2010.stm:4")
    assert "1 segments (0.5 s) skipped: ignore_time_segment_in_scoring" in caplog.text
    assert np.array_equal(read_audio(first), SAMPLES[8000:20000])
    assert np.array_equal(read_audio(second), SAMPLES[20000:])


def test_an_unknown_word_leaves_no_label_to_train_on(tmp_path):
    talk(tmp_path / "train")
    assert [u.text for u in open_source(f"tedlium:{tmp_path}/train")] == [
        None,
        "we don't give 'em our parents'",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("<sil> {SMACK} [BREATH] (Talk-0-13)", ""),
        ("a(2) b{UH}c", "a b c"),
        ("i 'm he 'd you 'll they 've we 're", "i'm he'd you'll they've we're"),
        ("'cause it 'snows 's", "'cause it 'snows's"),
        ("rock 'n roll <unk> '60s", "rock 'n roll '60s"),
    ],
)
def test_words(text, expected):
    assert tedlium.words(text) == expected


def test_the_label_is_optional(tmp_path):
    talk(tmp_path / "dev", lines="T 1 s 0 1 two words\nT 1 s 1 2\nT 1 s 2 3 <unk> word\n", name="T")
    assert [u.text for u in open_source(f"tedlium:{tmp_path}/dev")] == ["two words", "", "word"]


def test_the_legacy_split_of_release_3_is_found(tmp_path):
    """Its recordings are links into another folder of the release."""
    path = talk(tmp_path / "legacy" / "dev")
    (tmp_path / "data").mkdir()
    shutil.move(path, tmp_path / "data" / path.name)
    path.symlink_to(tmp_path / "data" / path.name)
    found = open_source("tedlium:dev", str(tmp_path))
    assert [u.id for u in found] == [u.id for u in open_source(f"tedlium:{tmp_path}/legacy/dev")]
    assert {u.path for u in found} == {os.path.realpath(path)}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("T 1 s 0", "has 4 fields; write TALK CHANNEL"),
        ("T 2 s 0 1 <NA> a", "channel 2"),
        ("T 1 s 1 1 <NA> a", "from 1 to 1; write seconds"),
        ("T 1 s -1 1 <NA> a", "write seconds"),
        ("T 1 s 0 nan <NA> a", "write seconds"),
        ("T 1 s 0 inf <NA> a", "write seconds"),
        ("T 1 s zero 1 <NA> a", "write seconds"),
        ("../T 1 s 0 1 <NA> a", "is no file name"),
        ("U 1 s 0 1 <NA> a", r"U\.sph is missing"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, complaint):
    talk(tmp_path / "dev", "T", f";; first\nT 1 s 0 1 <NA> a\n{line}\n")
    with pytest.raises(UserError, match=complaint) as caught:
        open_source(f"tedlium:{tmp_path}/dev")
    assert "T.stm:3:" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_segment_twice_is_refused(tmp_path):
    talk(tmp_path / "dev", "T", "T 1 s 0 1 <NA> a\nT 1 s 0 1 <NA> b\n")
    with pytest.raises(UserError, match=r"T\.stm:2: id 'T-0000000-0001000' was used before"):
        open_source(f"tedlium:{tmp_path}/dev")


def test_shorten_is_named_with_its_cure(tmp_path):
    path = talk(tmp_path / "dev")
    header = path.read_bytes()[:1024]
    assert b"pcm" in header
    shortened = header.replace(b"-s3 pcm", b"-s26 pcm,embedded-shorten-v2.00")[:1024]
    path.write_bytes(shortened + b"ajkg\2")
    wav = path.with_suffix(".wav")
    with pytest.raises(UserError, match="shorten") as caught:
        open_source(f"tedlium:{tmp_path}/dev")
    assert f"sph2pipe -p -f wav {path} {wav}" in str(caught.value)
    assert "TalkA_2010.stm:4:" in str(caught.value)
    soundfile.write(wav, SAMPLES, RATE)  # the result of the recommended conversion
    first, _ = open_source(f"tedlium:{tmp_path}/dev")
    assert np.array_equal(read_audio(first), SAMPLES[8000:20000])


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="ROOT/train, ROOT/dev or ROOT/test"):
        open_source(f"tedlium:{tmp_path}/dev")
    (tmp_path / "dev" / "stm").mkdir(parents=True)
    with pytest.raises(UserError, match="dev/sph"):
        open_source(f"tedlium:{tmp_path}/dev")


def test_nothing_outside_the_root_is_read(tmp_path):
    path = talk(tmp_path / "in" / "dev")
    talk(tmp_path / "out" / "dev")
    root = str(tmp_path / "in")
    assert len(open_source("tedlium:dev", root)) == 2
    with pytest.raises(UserError, match=r"^tedlium:\.\./out/dev: .* outside the data root"):
        open_source("tedlium:../out/dev", root)
    path.unlink()
    path.symlink_to(tmp_path / "out" / "dev" / "sph" / path.name)
    with pytest.raises(UserError, match=r"\.stm:4: .* outside the data root"):
        open_source("tedlium:dev", root)


def test_original_sphere_files(speech, tmp_path):
    """AN4's recordings with generated .stm files: each half has the samples of half the file."""
    split = tmp_path / "test"
    for part in ("sph", "stm"):
        (split / part).mkdir(parents=True)
    wholes = {}
    for path in sorted((speech / "layouts" / "an4" / "wav").glob("*/*/*.sph")):
        (split / "sph" / path.name).symlink_to(path)
        samples = np.frombuffer(path.read_bytes()[1024:], "<i2")  # 16-bit after 1 KiB of header
        end, name = len(samples) / RATE, path.stem
        lines = f"{name} 1 {name} 0 0.5 <NA> half\n{name} 1 {name} 0.5 {end} <NA> rest\n"
        (split / "stm" / f"{name}.stm").write_text(lines)
        wholes[name] = samples
    found = open_source(f"tedlium:{split}")
    assert len(found) == 2 * len(wholes) > 10
    for first, rest in zip(found[::2], found[1::2], strict=True):
        joined = np.concatenate([read_audio(first), read_audio(rest)])
        assert np.array_equal(joined, wholes[first.speaker])
