"""Reader of NeMo's tarred manifests."""

import re

import pytest

from bljust_jax.data.sources import open_source
from tests.helpers import formats, packed_formats


@pytest.fixture(scope="module")
def few():
    return formats.spoken(6)


def test_shards_above_sharded_manifests(tmp_path, few):
    """By default, those of the folder above, for one manifest of all."""
    packed_formats.nemo(tmp_path, few)
    manifests = tmp_path / "sharded_manifests"
    found = open_source(f"nemo:{manifests}/manifest_1.json")
    assert [u.id for u in found] == ["u003", "u004", "u005"]
    assert found[0].path == f"{tmp_path}/audio_1.tar#a_u003.wav"
    assert found[0].line == f"{manifests}/manifest_1.json:1"
    assert len(open_source("nemo:sharded_manifests/manifest_1.json", str(tmp_path))) == 3


MANIFEST = "tarred_audio_manifest.json"
# (file, old text, new text or None, the place that is named, complaint)
MISTAKES = [
    (MANIFEST, "s1.flac", "s7.flac", f"{MANIFEST}:2", "no shard holds 's7.flac': did you mean 's"),
    (MANIFEST, '"s1.flac"', "1", f"{MANIFEST}:2", "audio_filepath must be the path"),
    (MANIFEST, '"audio_filepath": "s1', '"audio_file": "s1', f"{MANIFEST}:2", "rename that field"),
    (MANIFEST, '"u001"', '"u000"', f"{MANIFEST}:2", "id 'u000' was used before"),
    (MANIFEST, '"offset": 0.0', '"offset": 9', f"{MANIFEST}:1", "offset 9 s is past the end of"),
    (MANIFEST, '"offset": 0.0', '"offset": -1', f"{MANIFEST}:1", "offset must be a number of sec"),
    (MANIFEST, '"duration": 0.', '"duration": 90.', f"{MANIFEST}:1", "past the end of .*#s0.flac"),
    (MANIFEST, '"Wie sch', '["Wie sch', f"{MANIFEST}:1", "is not JSON"),
    (MANIFEST, '"text": "Wie', '"txt": "Wie', "", "1 of 6 utterances have no text, the .*json:1"),
    (MANIFEST, '"Wie', b'"\xe9', f"{MANIFEST}:1", "is not UTF-8"),
    (MANIFEST, None, None, "", f"^nemo:.* no such file: .*{MANIFEST}"),
    (MANIFEST, None, "", "", f"^nemo:.*{MANIFEST}: no utterance found: it is empty"),
    ("audio_0.tar", None, None, "", r"^nemo:.* no audio_\*\.tar in .*; name them: \?tars=PATTERN"),
    ("audio_0.tar", None, b"\x1f\x8b12345678", "audio_0.tar", r"is compressed; .*\(gunzip\)"),
]


@pytest.mark.parametrize(("file", "old", "new", "where", "complaint"), MISTAKES)
def test_mistakes_are_named(tmp_path, few, caplog, file, old, new, where, complaint):
    uri = packed_formats.nemo_segments(tmp_path, few)
    formats.plant(tmp_path / file, old, new)
    formats.assert_answered(uri, caplog, where, complaint)


def test_a_damaged_shard_is_named_with_each_utterance_it_lacks(tmp_path, few, caplog):
    uri = packed_formats.nemo(tmp_path, few)
    tar = tmp_path / "audio_1.tar"
    tar.write_bytes(tar.read_bytes()[:9000])
    lines = formats.answer(uri, caplog).splitlines()
    assert 0 < len(lines) < 4
    for line in lines:
        formats.assert_line(line, "", r"manifest_1\.json:[23]: no shard holds 'a_u00")
        assert f"{tar} ends early" in line


def test_one_name_in_two_shards(tmp_path, few, caplog):
    uri = packed_formats.nemo(tmp_path, few)
    (tmp_path / "audio_1.tar").write_bytes((tmp_path / "audio_0.tar").read_bytes())
    complaint = r"audio_0\.tar holds that name, too; remove one"
    formats.assert_answered(uri, caplog, "audio_1.tar#a_u000.wav", complaint)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("?tars=", "?tar="), "has other options than tars"),
        (("0..1_CL_.tar", "0..2_CL_.tar"), r"no such file: .*audio_2\.tar \(1 of 3 shards are mis"),
        (("0..1_CL_.json", "1..0_CL_.json"), "ends before it starts"),
    ],
)
def test_mistakes_in_the_address(tmp_path, few, caplog, change, complaint):
    uri = packed_formats.nemo(tmp_path, few).replace(*change)
    assert re.search(complaint, formats.answer(uri, caplog))
