"""What `export_checkpoint` writes, without torch: files, card, refusals, and the way back."""

import json

import jax
import numpy as np
import pytest

from bljust_jax import export_checkpoint
from bljust_jax.common import cli
from bljust_jax.common.errors import UserError
from bljust_jax.data.tokenizer import CharTokenizer
from bljust_jax.export import hf_tokenizer, parity, pretrained
from bljust_jax.inference.load import exported_recognizer
from bljust_jax.inference.trained_run import load_trained_run
from tests.helpers import runs


def export(folder, *flags):
    out = folder / "out"
    assert (
        export_checkpoint.main([f"--workdir={folder}", f"--out={out}", "--unchecked", *flags]) == 0
    )
    return out


@pytest.fixture(scope="module")
def parakeet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parakeet")
    runs.save(folder, runs.parakeet)
    row = {"step": 9, "final": True, "dev/wer": 0.125, "test/cer": 0.25, "dev/words": 8}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    about = {"command": "python -m bljust_jax.main --config=x", "git": "abc", "devices": "1 x cpu"}
    (folder / "run.json").write_text(json.dumps(about))
    export(folder)
    return folder


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wav2vec2")
    runs.save(folder, runs.wav2vec2)
    export(folder)
    return folder


def header(path):
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_folder_of_a_parakeet(parakeet):
    out = parakeet / "out"
    assert header(out / "model.safetensors")["__metadata__"] == {"format": "pt"}
    config = read(out / "config.json")
    assert (config["architectures"], config["model_type"]) == (["ParakeetForCTC"], "parakeet_ctc")
    assert (config["vocab_size"], config["pad_token_id"]) == (29, 0)
    audio = read(out / "preprocessor_config.json")
    assert audio["feature_extractor_type"] == "ParakeetFeatureExtractor"
    assert (
        audio["feature_size"],
        audio["sampling_rate"],
        audio["hop_length"],
    ) == (40, 16000, 160)
    assert read(out / "tokenizer.json")["model"]["vocab"][:3] == [
        ["<pad>", 0.0],
        ["\u2581", 0.0],
        ["'", 0.0],
    ]


def test_the_folder_of_a_wav2vec2(wav2vec2):
    out = wav2vec2 / "out"
    config = read(out / "config.json")
    assert config["architectures"] == ["Wav2Vec2ForCTC"]
    vocabulary = read(out / "vocab.json")
    assert list(vocabulary)[:4] == ["<pad>", "|", "'", "a"]
    assert sorted(vocabulary.values()) == list(range(29))
    settings = read(out / "tokenizer_config.json")
    assert (settings["pad_token"], settings["word_delimiter_token"]) == ("<pad>", "|")
    audio = read(out / "preprocessor_config.json")
    assert audio["do_normalize"]
    assert audio["return_attention_mask"]
    assert "lm_head.weight" in header(out / "model.safetensors")


def test_the_card_holds_what_is_known_and_no_more(parakeet, wav2vec2):
    card = (parakeet / "out" / "README.md").read_text()
    head, body = card.removeprefix("---\n").split("\n---\n")
    assert "pipeline_tag: automatic-speech-recognition" in head.splitlines()
    for words in (
        "synthetic:tiny/train",
        "python -m bljust_jax.main --config=x",
        "| dev/wer | 0.1250 |",
        "| test/cer | 0.2500 |",
        "unknown: set by the owner",
        "Not checked.",
    ):
        assert words in body
    assert "words" not in body
    card = (wav2vec2 / "out" / "README.md").read_text()
    assert "the run is unfinished" in card
    assert "command: `unknown`" in card


def test_the_card_of_a_model_to_be_fine_tuned(tmp_path):
    def begun(c):
        runs.wav2vec2(c)
        c.init_from = "some/base"

    runs.save(tmp_path, begun)
    card = (export(tmp_path, "--pretraining") / "README.md").read_text()
    assert "started from `some/base`" in card
    assert "pipeline" not in card
    assert "Wav2Vec2ForPreTraining" in card


def test_padding_is_warned_of_where_it_matters(tmp_path):
    runs.save(tmp_path, runs.base)
    out = export(tmp_path)
    assert not read(out / "preprocessor_config.json")["return_attention_mask"]
    assert "one utterance at a time" in (out / "README.md").read_text()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """exported(change, tokenizer): the folder of a run beside its export in out/."""

    def make(change, tokenizer=runs.CHARACTERS):
        folder = tmp_path_factory.mktemp(change.__name__)
        runs.save(folder, change, tokenizer)
        export(folder)
        return folder

    return make


@pytest.mark.daily("causal")
@pytest.mark.parametrize("kind", ["plain", "causal", "cnn_rnn"])
def test_an_export_for_pytorch_recognises_as_the_run_does(kind, exported):
    check_recognises(exported(getattr(runs, kind)))


@pytest.mark.slow
def test_an_export_of_pieces_spells_as_the_run_does(exported):
    check_recognises(exported(runs.plain, runs.pieces("bpe", 40)))


@pytest.mark.slow
@pytest.mark.parametrize("change", [runs.plain, runs.parakeet, runs.wav2vec2])
def test_an_export_is_checked_without_torch(change, tmp_path, capsys):
    """Logits within 1e-4 of the largest, and equal texts: the default tolerance of the command."""
    runs.save(tmp_path, change)
    flags = [str(tmp_path), f"--out={tmp_path / 'out'}", "--jax", "--json", "--utterances=2"]
    assert export_checkpoint.main(flags) == 0
    found = json.loads(capsys.readouterr().out)["parity"]
    assert (found["equal_texts"], found["utterances"]) == (2, 2)
    assert found["relative"] < 1e-4
    assert set(found["versions"]) == {"jax"}
    flags = [str(tmp_path), f"--out={tmp_path / 'x'}", "--jax", "--pretraining"]
    assert export_checkpoint.main(flags) == 2


def test_a_damaged_export_for_pytorch_is_one_line(exported):
    out = exported(runs.plain) / "out"
    facts = read(out / "config.json")
    for field, said in (("tokens", "damaged: KeyError"), ("model", "damaged: KeyError")):
        changed = {k: v for k, v in facts.items() if k != field}
        (out / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=said):
            exported_recognizer(out)
    (out / "config.json").write_text(json.dumps(facts | {"tokens": facts["tokens"][:-1]}))
    with pytest.raises(UserError, match="28 tokens for a head of 29 classes"):
        exported_recognizer(out)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parakeet", "wav2vec2"])
def test_what_was_written_recognises_as_the_run_does(kind, request):
    check_recognises(request.getfixturevalue(kind))


def check_recognises(folder):
    opened = load_trained_run(folder)
    rng = np.random.default_rng(0)
    lengths = np.array([9000, 16000], np.int32)
    audio = (1000 * rng.standard_normal((2, 16000))).astype(np.int16)
    batch = {"audio": audio, "audio_lengths": lengths}
    expected, frames = jax.jit(opened.recipe.predict)(*opened.weights, batch)
    recognizer = exported_recognizer(folder / "out")
    found, found_frames = recognizer.predict(batch)
    assert found_frames.tolist() == frames.tolist() == [recognizer.frames(int(n)) for n in lengths]
    # the same operations on the same weights, in two programs
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(np.abs(expected).max()))
    assert recognizer.sample_rate == 16000
    for_space = {"\u2581": " "}
    ours, theirs = recognizer.symbols, opened.tokenizer.symbols
    assert [for_space.get(s, s) for s in ours] == [for_space.get(s, s) for s in theirs]
    text = next(filter(opened.tokenizer.covers, ("it's a test", "turn the light on")))
    assert recognizer.decode(opened.tokenizer.encode(text).tolist()) == text


# Tokenizers


@pytest.mark.parametrize(("kind", "size"), [("bpe", 40), ("unigram", 32)])
def test_pieces_are_written_with_their_scores_and_read_back(kind, size, tmp_path):
    units = runs.pieces(kind, size)
    hf_tokenizer.write(units, tmp_path, words=True)
    model = read(tmp_path / "tokenizer.json")["model"]
    assert model["type"] == {"bpe": "BPE", "unigram": "Unigram"}[kind]
    found = hf_tokenizer.read(tmp_path, 0)
    assert pretrained.same_units(found, units)
    for text in runs.TEXTS:
        assert found.decode(units.encode(text).tolist()) == text
    if kind == "bpe":  # each merge makes a piece, and comes after those that make its halves
        vocabulary, made = model["vocab"], set()
        for left, right in model["merges"]:
            assert left + right in vocabulary
            assert all(len(half) == 1 or half in made for half in (left, right))
            made.add(left + right)


def test_a_delimiter_that_the_texts_do_not_use(tmp_path):
    units = CharTokenizer(" a|", ())
    hf_tokenizer.write(units, tmp_path, words=True)
    assert list(read(tmp_path / "vocab.json")) == ["<pad>", "\u2581", "a", "|"]
    assert hf_tokenizer.read(tmp_path, 0).decode([2, 1, 3]) == "a |"


def test_a_vocabulary_with_the_blank_elsewhere_and_special_tokens(tmp_path):
    ids = {"<s>": 0, "</s>": 1, "a": 2, "|": 3, "[PAD]": 4, "b": 5}
    hf_tokenizer.write_json(tmp_path / "vocab.json", ids)
    found = hf_tokenizer.read(tmp_path, 4)
    assert found.symbols == ("", "", "a", " ", "b")
    assert found.decode([1, 3, 4, 5, 2, 0]) == "a b"
    hf_tokenizer.write_json(tmp_path / "vocab.json", {"eng": ids})
    assert hf_tokenizer.read(tmp_path, 4) is None


# Certificate


LOGITS = np.array([[1.0, 4.0], [2.0, -3.0]], np.float32)


def certify(monkeypatch, alone, together, scale=1.0):
    """Compare a run, of texts x and y and logits times `scale`, with an export that answers one by
    one from `alone`, and for both at once `together`: each (logits, text) per utterance."""
    monkeypatch.setitem(parity.NEEDS, "none", ())
    logits = np.float32(scale) * LOGITS
    reference = parity.RunOutput([np.zeros(5, np.int16)] * 2, [logits, logits[:1]], ["x", "y"])
    answers = iter(alone)
    return parity.certify(
        reference,
        lambda audio: list(together) if len(audio) == 2 else [next(answers)],
        1e-4,
        kind="none",
        batched=True,
    )


def test_a_certificate_is_refused_for_logits_and_for_texts(monkeypatch):
    whole = [(LOGITS, "x"), (LOGITS, "y")]  # longer logits than the run's are cut

    def differing(by, last="y"):
        return certify(monkeypatch, whole, [(LOGITS + np.float32(by), "x"), (LOGITS[:1], last)])

    found = differing(2e-4)
    assert found.difference == pytest.approx(2e-4, rel=1e-3)  # float32 of 4.0002
    assert found.relative == pytest.approx(0.5e-4, rel=1e-3)
    assert found.equal_texts == 2
    with pytest.raises(parity.UserError, match="no parity, tolerance"):
        differing(1e-3)
    with pytest.raises(parity.UserError, match="no parity, tolerance"):
        differing(np.nan)
    with pytest.raises(parity.UserError, match="texts differ"):
        differing(0.0, "z")


def test_a_certificate_takes_each_way_whole_and_differences_relative(monkeypatch):
    whole = [(LOGITS, "x"), (LOGITS, "y")]
    with pytest.raises(parity.UserError, match="texts differ"):
        certify(monkeypatch, [(LOGITS, "z"), (LOGITS, "y")], whole)
    with pytest.raises(parity.UserError, match="logits"):
        certify(monkeypatch, [(LOGITS[:1], "x"), (LOGITS, "y")], whole)
    # 1e-3 of the largest logit, though 1e-5 itself
    small, off = np.float32(0.0025) * LOGITS, np.float32(1e-5)
    with pytest.raises(parity.UserError, match="no parity, tolerance"):
        certify(
            monkeypatch, [(small, "x"), (small, "y")], [(small + off, "x"), (small, "y")], 0.0025
        )


# Mistakes


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tolerance=0"], "--tolerance"),
        (["--utterances=0"], "--utterances"),
        (["--pretraining"], "encoder wav2vec2 and ssl wav2vec2"),
        (["--data=none.jsonl"], "none.jsonl"),
        (["--out=config.json"], "exists"),
        (["--unknown"], "--unknown"),
    ],
)
def test_mistakes_are_one_line(flags, words, parakeet, capsys, monkeypatch):
    monkeypatch.chdir(parakeet)
    monkeypatch.setattr(parity, "check_installed", lambda kind: None)
    before = sorted(parakeet.rglob("*"))
    assert export_checkpoint.main(["--workdir=.", "--out=new", *flags]) == cli.USER_ERROR
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert words in line
    assert sorted(parakeet.rglob("*")) == before, "nothing is left behind"


def test_what_the_check_needs_is_named(parakeet, capsys, monkeypatch):
    monkeypatch.setattr(parity.importlib.util, "find_spec", lambda name: None)
    flags = [f"--workdir={parakeet}", f"--out={parakeet / 'new'}"]
    assert export_checkpoint.main(flags) == cli.USER_ERROR
    assert "pip install torch transformers, or give --unchecked" in capsys.readouterr().err
