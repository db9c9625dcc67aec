"""Runs as PyTorch loads them, where torch and transformers are installed: logits and texts."""

import json
import pathlib
import subprocess
import sys
import wave

import numpy as np
import pytest

from bljust_jax import export_checkpoint
from bljust_jax.decoding import greedy
from bljust_jax.export import hf_tokenizer, pretrained, tensors
from bljust_jax.inference.load import exported_recognizer
from bljust_jax.inference.trained_run import load_trained_run
from tests.helpers import runs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

HUGGINGFACE = {
    "parakeet": (runs.parakeet, runs.CHARACTERS, "ParakeetForCTC"),
    "parakeet-bpe": (runs.parakeet, runs.pieces("bpe", 40), "ParakeetForCTC"),
    "wav2vec2": (runs.wav2vec2, runs.CHARACTERS, "Wav2Vec2ForCTC"),
    "base-unigram": (runs.base, runs.pieces("unigram", 32), "Wav2Vec2ForCTC"),
}
MODULES = {"bfloat16": runs.bfloat16, "causal": runs.causal, "cnn_rnn": runs.cnn_rnn}
MODULES |= {"rope": runs.rope}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def exported(folder, *flags):
    arguments = [f"--workdir={folder}", f"--out={folder / 'out'}", *flags]
    assert export_checkpoint.main([*arguments, "--json"]) == 0
    return folder / "out"


def heard(folder, *flags):
    """What the run makes of the first utterances of its dev."""
    parsed = export_checkpoint.parser().parse_args([f"--workdir={folder}", "--out=no", *flags])
    return export_checkpoint.reference_output(load_trained_run(folder), parsed)


@pytest.mark.parametrize("name", HUGGINGFACE)
def test_transformers_loads_all_of_it_and_says_the_same(name, tmp_path, capsys):
    change, tokenizer, architecture = HUGGINGFACE[name]
    runs.save(tmp_path, change, tokenizer)
    out = exported(tmp_path)
    told = json.loads(capsys.readouterr().out)
    assert told["architecture"] == architecture
    # float32 sums in another order through two blocks; a wrong tensor changes 1e-2 or more
    assert told["parity"]["relative"] < 1e-5
    assert told["parity"]["equal_texts"] == told["parity"]["utterances"] == 8
    assert told["parity"]["batched"] == (change is not runs.base)
    model, info = transformers.AutoModelForCTC.from_pretrained(out, output_loading_info=True)
    assert type(model).__name__ == architecture
    assert not any(info.values())
    recognise = transformers.pipeline("automatic-speech-recognition", model=str(out))
    ours = heard(tmp_path)
    assert len(set(ours.texts)) > 2, "texts that could not tell utterances apart"
    for audio, text in zip(ours.audio, ours.texts, strict=True):
        raw = {"raw": audio.astype(np.float32) / 32768, "sampling_rate": 16000}
        if architecture == "ParakeetForCTC":
            check_generated(out, recognise, raw["raw"], text)
        if architecture != "ParakeetForCTC" or len(audio) // 160 % 8:
            assert recognise(raw)["text"].strip() == text
    check_read_back(out, ours)
    if name == "wav2vec2":
        raw = {"raw": ours.audio[0].astype(np.float32) / 32768, "sampling_rate": 16000}
        words = recognise(raw, return_timestamps="word")["chunks"]
        assert [w["text"] for w in words] == ours.texts[0].split()


@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize(
    "units", [runs.CHARACTERS, runs.pieces("bpe", 40), runs.pieces("unigram", 32)]
)
def test_tokenizers_agree(units, words, tmp_path):
    """Texts to ids, and paths with blanks, repeats and outer spaces to texts."""
    hf_tokenizer.write(units, tmp_path, words=words)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.pad_token_id, len(theirs)) == (0, units.vocab_size)
    read = hf_tokenizer.read(tmp_path, 0)
    assert pretrained.same_units(read, units)
    draws = np.random.default_rng(0).integers(1, units.vocab_size, (20, 8)).tolist()
    for ids in [units.encode(text).tolist() for text in runs.TEXTS] + draws:
        path = [k for n in ids for k in (0, n, n)]
        assert theirs.decode(path).strip() == units.decode(ids).strip() == read.decode(ids)
    for text in runs.TEXTS:
        assert theirs(text)["input_ids"] == units.encode(text).tolist()


def check_generated(out, recognise, audio, text):
    """`generate` masks the padded frame that the feature extractor adds; the pipeline hears it too,
    where the feature frames are a multiple of the factor."""
    extract = transformers.AutoFeatureExtractor.from_pretrained(out)
    inputs = extract([audio], sampling_rate=16000, return_tensors="pt")
    found = recognise.model.generate(**inputs)
    found = getattr(found, "sequences", found)
    assert recognise.tokenizer.decode(found[0]).strip() == text


def check_read_back(out, ours):
    """The folder, read without torch, recognises as the run does."""
    recognizer = exported_recognizer(out)
    lengths = np.array([len(x) for x in ours.audio], np.int32)
    batch = np.zeros((len(lengths), lengths.max()), np.int16)
    for row, audio in zip(batch, ours.audio, strict=True):
        row[: len(audio)] = audio
    logits, frames = recognizer.predict({"audio": batch, "audio_lengths": lengths})
    assert frames.tolist() == [recognizer.frames(int(n)) for n in lengths]
    for row, own, text in zip(np.asarray(logits), ours.logits, ours.texts, strict=True):
        # the same program on the same weights, padded to another length
        np.testing.assert_allclose(row[: len(own)], own, atol=1e-4 * np.abs(own).max())
        assert recognizer.decode(greedy.collapse(row[: len(own)].argmax(-1))) == text


@pytest.mark.parametrize("change", [runs.wav2vec2, runs.base])
def test_pretraining_models_predict_the_same(change, tmp_path, capsys):
    runs.save(tmp_path, change)
    out = exported(tmp_path, "--pretraining")
    told = json.loads(capsys.readouterr().out)
    assert told["architecture"] == "Wav2Vec2ForPreTraining"
    assert told["parity"]["relative"] < 1e-5  # as above
    config = transformers.AutoConfig.from_pretrained(out)
    assert config.architectures == ["Wav2Vec2ForPreTraining"]
    assert (config.num_codevector_groups, config.proj_codevector_dim) == (2, 12)


@pytest.mark.parametrize("name", MODULES)
def test_the_module_computes_the_same(name, tmp_path, capsys):
    runs.save(tmp_path, MODULES[name])
    exported(tmp_path)
    told = json.loads(capsys.readouterr().out)
    assert told["architecture"] == "modeling.py"
    assert told["parity"]["relative"] < 1e-5  # as above
    assert told["parity"]["batched"]


def test_the_module_transcribes_a_file_alone(tmp_path):
    """`python modeling.py FILE` in a folder of its own: it imports nothing but torch."""
    runs.save(tmp_path)
    out, ours = exported(tmp_path), heard(tmp_path, "--utterances=1")
    path = tmp_path / "speech.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(ours.audio[0].tobytes())
    found = subprocess.run(
        [sys.executable, out / "modeling.py", path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == ours.texts[0]


def test_no_parity_leaves_no_folder(tmp_path, monkeypatch, capsys):
    """One weight off by a hundredth of its size is found, and nothing reads as exported."""
    runs.save(tmp_path)
    write = tensors.write

    def spoiled(path, found):
        name = "encoder.blocks.1.ff2.up.weight"
        write(path, found | {name: found[name] * 1.01})

    monkeypatch.setattr("bljust_jax.export.torch_folder.write", spoiled)
    assert export_checkpoint.main([f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: no parity")
    assert not (tmp_path / "out").exists()


def test_a_pickle_is_read_only_where_allowed_and_only_as_weights(tmp_path):
    weights = {"a": torch.ones(2, 3, dtype=torch.float16)}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    found = tensors.read(tmp_path, allow_pickle=True)
    assert found["a"].dtype == np.float32
    assert found["a"].shape == (2, 3)
    torch.save({"a": pathlib.PurePosixPath("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(tensors.UserError, match="more than weights"):
        tensors.read(tmp_path, allow_pickle=True)
    torch.save({"a": {"b": torch.ones(1)}}, tmp_path / "pytorch_model.bin")
    with pytest.raises(tensors.UserError, match="no table of named tensors"):
        tensors.read(tmp_path, allow_pickle=True)
