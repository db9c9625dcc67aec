"""The data doctor's page is self-contained, names its findings, and plays the worst utterances."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
import soundfile

from bljust_jax import doctor
from bljust_jax.common import shipped_configs
from bljust_jax.data.tokenizer import CharTokenizer

RATE = 16000
NOISE = "<script>alert(1)</script>"


VOID = {"meta", "br", "path", "rect"}  # elements without an end tag


class Elements(html.parser.HTMLParser):
    """All start tags with their attributes; raises if end tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A manifest of 25 utterances of noise with speech-like peaks: one clipped, one undecodable,
    one whose text is markup."""
    folder = tmp_path_factory.mktemp("page")
    rng, lines = np.random.default_rng(0), []
    for n in range(25):
        seconds = 1 + 0.05 * n
        audio = 0.1 * rng.standard_normal(round(seconds * RATE))
        if n == 3:
            audio = np.clip(audio, -0.1, 0.1)
        soundfile.write(folder / f"{n}.wav", audio, RATE)
        text = NOISE if n == 5 else f"word number {'abcdefghijklmnopqrstuvwxyz'[n]}"
        lines.append({"audio_filepath": f"{n}.wav", "duration": seconds, "text": text})
    (folder / "7.wav").write_bytes(b"no audio" * 100)
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def page(corpus):
    assert doctor.main([str(corpus / "train.jsonl"), "--html", str(corpus / "page.html")]) == 1
    return Elements((corpus / "page.html").read_text(encoding="utf-8"))


def test_the_page_loads_nothing(page):
    for tag, attributes in page.found:
        assert tag not in ("script", "link", "iframe", "img")
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert NOISE in page.text  # as text, not as an element


def test_the_page_names_findings_and_settings(page):
    for text in ("Findings", "clipped", "undecodable", "train.jsonl:4", "--config.data.buckets="):
        assert text in page.text
    assert sum(tag == "svg" for tag, _ in page.found) == 4


def test_the_worst_utterances_can_be_played(page):
    players = [attributes["src"] for tag, attributes in page.found if tag == "audio"]
    assert len(players) == 20
    for source in players:
        audio, rate = soundfile.read(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert rate == RATE
        assert 0.9 < len(audio) / rate < 2.5
        assert np.std(audio) > 0.03


def test_a_repeated_command_decodes_nothing(page, corpus, capsys, monkeypatch):
    """Only a changed file is decoded again; a cut last line of the cache is no obstacle."""
    cache = corpus / "page.measurements.jsonl"
    command = [str(corpus / "train.jsonl"), "--json", "--cache", str(cache)]
    assert doctor.main(command) == 1
    first = capsys.readouterr()
    assert "decoded" not in first.err
    cache.write_text(cache.read_text()[:-40])
    soundfile.write(corpus / "7.wav", np.zeros(RATE), RATE)
    assert doctor.main(command) == 1
    second = capsys.readouterr()
    assert "decoded 2/2 files" in second.err
    kinds = {f["kind"] for f in json.loads(second.out)["findings"]}
    assert "undecodable" not in kinds
    assert "silent" in kinds
    (corpus / "7.wav").write_bytes(b"no audio" * 100)


def test_the_text_lists_examples_with_file_and_line(corpus, capsys):
    cache = str(corpus / "page.measurements.jsonl")
    assert doctor.main([str(corpus / "train.jsonl"), "--cache", cache]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^warning: clipped: 1 with clipped peaks$", out, re.MULTILINE)
    assert re.search(r"train\.jsonl:4: 3\.wav: \d+\.\d% of the samples are at the peak", out)
    assert "checks have findings" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/absent.jsonl"], "no such manifest"),
        (["{}/train.jsonl", "--config=quikstart"], "did you mean 'quickstart'"),
        (["{}/train.jsonl", "--workdir={}"], "holds no config.json"),
        (["{}/train.jsonl", "--workdir={}", "--config=manifest"], "name one"),
        (["{}/train.jsonl", "--threads=0"], "--threads 0 must be"),
        (["{}/train.jsonl", "--config=m2asr:covost"], "choose one with --task"),
    ],
)
def test_mistakes_are_one_line(arguments, message, corpus, capsys):
    assert doctor.main([argument.format(corpus) for argument in arguments]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert message in told[0]


def test_labels_and_frames_of_a_config_or_run(corpus, capsys, tmp_path):
    """Capitals are no fault where the config lowers them; a label needs a frame of its encoder."""
    text = "a" * 16  # 31 frames with blanks: 1 s has 25 of 40 ms
    rows = [{"audio_filepath": f"{n}.wav", "text": f"Word {'abcde'[n]}"} for n in range(3)]
    rows.append({"audio_filepath": "0.wav", "text": text, "id": "long"})
    manifest = tmp_path / "train.jsonl"
    for row in rows:
        row["audio_filepath"] = str(corpus / row["audio_filepath"])
    manifest.write_text("\n".join(map(json.dumps, rows)))
    command = [str(manifest), "--root", str(corpus), "--cache", str(tmp_path / "c"), "--json"]

    def kinds(*options):
        code = doctor.main([*command, *options])
        report = json.loads(capsys.readouterr().out)
        assert code == (1 if report["findings"] else 0)
        return {f["kind"] for f in report["findings"]}, report["assumption"]

    found, assumption = kinds()
    assert {"case", "infeasible"} <= found
    assert "40 ms" in assumption
    found, assumption = kinds("--config=manifest:digits")
    assert assumption == ""
    assert "case" not in found
    assert "infeasible" in found
    config = shipped_configs.load("manifest:digits")
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    CharTokenizer(" abcdeorwd"[:8], ("lower",)).save(tmp_path)
    found, _ = kinds("--workdir", str(tmp_path))
    assert "case" not in found
    assert "vocabulary" in found  # the tokenizer lacks a letter of "word"
