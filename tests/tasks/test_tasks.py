"""Runs of several tasks: how each is scored, and one of them opened, transcribed and exported."""

import json
import pathlib

import jax
import numpy as np
import pytest

from bljust_jax import evaluate as evaluate_command
from bljust_jax import export_checkpoint, ngram, recipes
from bljust_jax import transcribe as transcribe_command
from bljust_jax.bilevel import step
from bljust_jax.bilevel.optimizer import make_optimizer
from bljust_jax.checkpoint.manager import Checkpoints
from bljust_jax.common.errors import UserError
from bljust_jax.data import tokenizer_files
from bljust_jax.data.sources import open_source, read_audio
from bljust_jax.data.tokenizer import CharTokenizer
from bljust_jax.inference import measures, windows
from bljust_jax.inference.load import load_model
from bljust_jax.inference.trained_run import load_trained_run
from bljust_jax.inference.transcriber import WindowOptions, translate
from bljust_jax.monitoring import metrics
from bljust_jax.train import initial_state, loop
from configs import m2asr
from tests.helpers.fake_recognizer import store
from tests.helpers.runs import save_untrained
from tests.helpers.systems import SMALL
from tests.helpers.tasks import st
from tests.helpers.workdirs import read_samples

STEP = 5
LETTERS = " 'abcdefghijklmnopqrstuvwxyz"
# vocabularies of unlike sizes, so that nothing fits where it does not belong
SYMBOLS = {"asr/ar": LETTERS, "asr/en": LETTERS + "äö", "st/ar-en": LETTERS + "äöü"}


# A run


def translated(folder):
    """Manifests of synthetic speech whose translation has the words in reverse order, and the root
    of the audio."""
    uris = {}
    for split in ("train", "dev"):
        lines = []
        for u in open_source(f"synthetic:tiny/{split}"):
            entry = {"audio_filepath": u.path, "duration": u.duration, "text": u.text, "id": u.id}
            entry |= {"speaker": u.speaker, "translation": " ".join(reversed(u.text.split()))}
            lines.append(json.dumps(entry) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))
        uris[split] = str(folder / f"{split}.jsonl")
    return uris, str(pathlib.Path(u.path).parents[1])


def make_config(folder):
    """Three tasks of a small M2ASR on such speech."""
    config = m2asr.get_config("digits,smoke")
    uris, config.data.root = translated(folder)
    del config.data.streams["st/en-ar"]
    for stream in config.data.streams.values():
        stream.update(**uris, test="")
    config.model.update(SMALL[config.encoder])
    config.decoder.update(dim=16, layers=1, heads=2, ff_mult=2)
    config.mesh.data = 1
    config.compile_cache = ""
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    return save_first_step(folder, make_config(folder))


def save_first_step(folder, config):
    """What training leaves of a run of three tasks, with the weights of its first step and with
    training data that are gone."""
    units = {name: CharTokenizer(symbols, ("lower",)) for name, symbols in SYMBOLS.items()}
    tokenizer_files.save(folder, units)
    sizes = {name: tokenizer.vocab_size for name, tokenizer in units.items()}
    facts = recipes.Facts(sizes, dict.fromkeys((*sizes, "unlabelled"), 1))
    recipe = recipes.load(config.recipe)(config, facts)
    state = step.init_state(recipe, make_optimizer(recipe.combiner, recipe.groups), seed=0)
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(STEP, state, state.weights, {})
    checkpoints.close()
    for stream in config.data.streams.values():
        stream.train = "gone.jsonl"
    (folder / "config.json").write_text(config.to_json())
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("single"))


def run(command, capsys, *flags):
    """(exit code, lines of stdout, of stderr)."""
    code = command.main([str(flag) for flag in flags])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def test_a_recognition_task_opens_as_a_run_of_its_own(workdir):
    whole, opened = load_trained_run(workdir), load_trained_run(workdir).select_task("asr/en")
    assert opened.step == STEP
    assert set(opened.weights.params) == {"encoder", "ctc_head", "cpc_head"}
    assert opened.tokenizer.vocab_size == len(SYMBOLS["asr/en"]) + 1
    own = opened.config.data.streams["asr/en"]
    assert (opened.config.data.dev, opened.config.data.text) == (own.dev, own.text)
    task = next(t for t in whole.recipe.tasks if t.name == "asr/en")
    batch = {"audio": np.ones((1, 16000), np.int16), "audio_lengths": np.array([15000], np.int32)}
    batch["audio"][0, ::7] = 3000
    for ours, theirs in zip(
        jax.jit(opened.task.predict)(*opened.weights, batch),
        jax.jit(task.predict)(*whole.weights, batch),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert opened.recipe.predict is opened.task.predict


def test_an_encoder_is_borrowed_of_a_run_of_several_tasks(workdir):
    whole = load_trained_run(workdir)
    found = initial_state.encoder_weights(whole)
    assert set(found.params) == {"encoder"}
    initial_state.check_same_encoder(whole.config, whole, "teacher")


def test_evaluate_scores_a_recognition_task(workdir, capsys):
    flags = [f"--workdir={workdir}", "--task=asr/en", "--beam=1", "--json"]
    code, (line,), _ = run(evaluate_command, capsys, *flags)
    found = json.loads(line)
    assert (code, found["task"], found["step"]) == (0, "asr/en", STEP)
    plain, beam = found["best_path"], found["beam_search"]
    assert plain["dev/asr/en/utterances"] == 8
    assert beam == {k: v for k, v in plain.items() if k in beam}
    samples = read_samples(workdir / "samples" / "dev-asr_en-beam.jsonl")
    assert all(s["hypothesis"] == s["best_path"] for s in samples)


@pytest.fixture(scope="module")
def translated_dev(workdir):
    """(what `evaluate` finds for the translation, its pairs)."""
    flags = [f"--workdir={workdir}", "--task=st/ar-en", "--beam=2"]
    found = evaluate_command.evaluate(evaluate_command.parser().parse_args(flags), print)
    return found, read_samples(workdir / "samples" / "dev-st_ar-en-beam.jsonl")


def test_evaluate_scores_a_translation_with_its_signatures(workdir, translated_dev):
    found, samples = translated_dev
    assert (found["beam"], found["task"], found["step"]) == (2, "st/ar-en", STEP)
    for search, column in (("greedy", "greedy"), ("beam_search", "hypothesis")):
        expected = measures.translation(
            [s["reference"] for s in samples], [s[column] for s in samples]
        )
        assert found[search] == {f"dev/st/ar-en/{k}": v for k, v in expected.items()}
    assert any(s["hypothesis"] for s in samples)
    assert samples[0]["reference"] == first_of_dev(workdir).translation.lower()
    signatures = measures.signatures(st("st/ar-en"))
    assert found["signatures"] == signatures
    lines = evaluate_command.report_lines(found)
    assert lines[0].startswith("dev/st/ar-en greedy: BLEU ")
    assert lines[1].startswith("dev/st/ar-en beam search: BLEU ")
    assert lines[2:4] == [f"{name}: {text}" for name, text in signatures.items()]


def first_of_dev(workdir):
    return open_source(f"{workdir}/dev.jsonl", load_trained_run(workdir).config.data.root)[0]


def test_a_translation_is_transcribed_without_times(workdir, translated_dev, tmp_path, capsys):
    """The same text as `evaluate` finds; longer audio in parts, joined by spaces."""
    audio = read_audio(first_of_dev(workdir))
    once = store(tmp_path / "once.flac", audio)
    flags = [f"--model={workdir}", "--task=st/ar-en", "--beam=2", "--json", "--window=4", once]
    code, (line,), _ = run(transcribe_command, capsys, *flags)
    found, expected = json.loads(line), translated_dev[1][0]["hypothesis"]
    assert (code, found["text"], found["words"]) == (0, expected.strip(), [])
    model = load_model(workdir, "st/ar-en")
    twice = store(tmp_path / "twice.flac", np.concatenate([audio, audio]))
    settings = WindowOptions(window=len(audio) / 16000)
    whole, parted = translate(model, [once, twice], settings, 2)
    assert parted.text == f"{whole.text} {whole.text}".strip()
    assert parted.seconds == pytest.approx(2 * whole.seconds)


def test_a_recording_is_parted_equally():
    assert windows.divide(0, 10) == [(0, 0)]
    assert windows.divide(10, 10) == [(0, 10)]
    assert windows.divide(21, 10) == [(0, 7), (7, 14), (14, 21)]


def test_a_recognition_task_is_exported(workdir, tmp_path, capsys):
    out = tmp_path / "out"
    flags = [f"--workdir={workdir}", f"--out={out}", "--unchecked"]
    code, _, _ = run(export_checkpoint, capsys, *flags, "--task=asr/ar")
    assert code == 0
    tokens = json.loads((out / "config.json").read_text())["tokens"]
    assert tokens == ["", *SYMBOLS["asr/ar"]]
    card = (out / "README.md").read_text()
    assert f"- data.dev: `{workdir}/dev.jsonl`" in card


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """As `workdir`, of translations by a linear head."""
    folder = tmp_path_factory.mktemp("linear")
    config = make_config(folder)
    config.decoder.kind = "linear"
    return save_first_step(folder, config)


@pytest.mark.slow
def test_a_translation_by_a_linear_head_is_decoded_as_ctc_and_scored_by_bleu(linear, capsys):
    flags = [f"--workdir={linear}", "--task=st/ar-en", "--beam=1", "--json"]
    code, (line,), _ = run(evaluate_command, capsys, *flags)
    found = json.loads(line)
    assert code == 0
    samples = read_samples(linear / "samples" / "dev-st_ar-en-beam.jsonl")
    assert samples[0]["reference"] == first_of_dev(linear).translation.lower()
    for search, column in (("best_path", "best_path"), ("beam_search", "hypothesis")):
        expected = measures.translation(
            [s["reference"] for s in samples], [s[column] for s in samples]
        )
        own = {f"dev/st/ar-en/{k}": v for k, v in expected.items()}
        assert own.items() <= found[search].items()
    assert any(s["hypothesis"] for s in samples)
    assert found["signatures"] == measures.signatures(st("st/ar-en"))
    assert "dev/st/ar-en/wer" not in found["best_path"]
    flags[2:] = ["--lm=x.arpa", "--tune"]
    code, _, err = run(evaluate_command, capsys, *flags)
    assert (code, err[-1]) == (
        2,
        "error: --tune minimises WER, and st/ar-en is measured by BLEU: give --alpha and --beta",
    )


@pytest.mark.slow
def test_a_translation_by_a_linear_head_is_exported(linear, tmp_path, capsys):
    out = tmp_path / "out"
    flags = [f"--workdir={linear}", f"--out={out}", "--unchecked", "--task=st/ar-en"]
    code, _, _ = run(export_checkpoint, capsys, *flags)
    assert code == 0
    tokens = json.loads((out / "config.json").read_text())["tokens"]
    assert tokens == ["", *SYMBOLS["st/ar-en"]]
    assert "Intended use: translation (ar-en) of audio" in (out / "README.md").read_text()


def test_a_language_model_is_of_one_task_s_units(workdir, tmp_path, capsys):
    texts = tmp_path / "texts"
    texts.write_text("Öl und Äpfel\n")
    flags = [f"--workdir={workdir}", f"--text={texts}", "--over=units", "--json"]
    flags += [f"--out={tmp_path / 'x.arpa'}"]
    for task, sentences in (("asr/en", 1), ("asr/ar", 0)):
        code, out, _ = run(ngram, capsys, *flags, f"--task={task}")
        assert (code == 0) == (sentences > 0)
        assert not out or json.loads(out[0])["sentences"] == sentences


MISTAKES = {
    "no task": ("evaluate", [], "choose one with --task, of asr/ar, asr/en, st/ar-en"),
    "another task": ("evaluate", ["--task=asr/eng"], "no task 'asr/eng', did you mean 'asr/en'?"),
    "a model": ("evaluate", ["--task=st/ar-en", "--lm=x.arpa"], "--lm is of recognition"),
    "tuning": ("evaluate", ["--task=st/ar-en", "--lm=x", "--tune"], "is of recognition"),
    "hypotheses": ("evaluate", ["--task=st/ar-en", "--nbest=2"], "--nbest is of recognition"),
    "test": ("evaluate", ["--task=asr/en", "--split=test"], "config.data.streams.asr/en.test"),
    "export": ("export", ["--task=st/ar-en"], "--config.init_parts=encoder,st_ar-en_head"),
    "units": ("ngram", [], "choose one with --task, of asr/ar, asr/en, st/ar-en"),
    "texts": ("transcribe", ["--task=st/ar-en", "--lm=x.arpa", "a.wav"], "--lm is of recognition"),
    "window": ("transcribe", ["--task=st/ar-en", "--window=0.01", "a.wav"], "at least 0.1 s"),
}


@pytest.mark.daily("another task", "no task", "units", "hypotheses")
@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_mistakes_are_one_line(name, workdir, tmp_path, capsys):
    command, flags, words = MISTAKES[name]
    module, own = {
        "evaluate": (evaluate_command, [f"--workdir={workdir}"]),
        "export": (export_checkpoint, [f"--workdir={workdir}", f"--out={tmp_path / 'out'}"]),
        "ngram": (ngram, [f"--workdir={workdir}", "--text=x", f"--out={tmp_path / 'x.arpa'}"]),
        "transcribe": (transcribe_command, [f"--model={workdir}"]),
    }[command]
    code, out, err = run(module, capsys, *own, *flags)
    assert (code, out) == (2, [])
    assert err[-1].startswith("error: ")
    assert words in err[-1]


@pytest.mark.slow
def test_a_run_of_one_task_takes_no_name(single):
    with pytest.raises(UserError, match="has one task, without a name"):
        load_trained_run(single).select_task("asr/en")
    with pytest.raises(UserError, match="has one task, without a name"):
        tokenizer_files.load_one(single, "asr/en")
    assert (
        tokenizer_files.load_one(single, "").vocab_size
        == load_trained_run(single).tokenizer.vocab_size
    )


# Training


@pytest.mark.slow
def test_a_run_of_two_tasks_trains_is_scored_and_goes_on(tmp_path, capsys):
    config = make_config(tmp_path)
    del config.data.streams["asr/ar"]
    config.data.streams["st/ar-en"].text.update(units="bpe", vocab_size=40)
    config.method = "two_stage"  # without its first stage
    config.phases.update(explore=0.0, joint=0.0, finetune=4.0)
    config.update(eval_every=4, save_every=2, log_every=1)
    workdir = tmp_path / "run"
    final = loop.run(config, workdir)
    scores = {"dev/asr/en": ("wer", "cer"), "dev/st/ar-en": ("bleu", "chrf")}
    for split, measured in scores.items():
        for measure in measured:
            assert np.isfinite(final[f"{split}/{measure}"])
            assert final[f"dev/{measure}"] == final[f"{split}/{measure}"]
    assert not any(key.startswith("test/") for key in final), "no stream has a test split"
    tasks = ("asr/en", "st/ar-en")
    assert all(final[f"compute/updates/{t}"] == 4 for t in tasks)
    rows = metrics.read(workdir / "metrics.jsonl")
    assert {f"train/{t}/loss" for t in tasks} <= set().union(*rows)
    names = {p.name for p in (workdir / "samples").iterdir()}
    assert names == {f"dev-{t.replace('/', '_')}-{n}.jsonl" for t in tasks for n in (4, "best")}
    about = json.loads((workdir / "run.json").read_text())
    assert about["signatures"] == {"st/ar-en": measures.signatures(st("st/ar-en"))}
    assert (workdir / "example.npz").exists()
    opened = load_trained_run(workdir).select_task("st/ar-en")
    written = json.loads((workdir / "config.json").read_text())["data"]["streams"]
    assert opened.tokenizer.sha256 == written["st/ar-en"]["text"]["sha256"] != ""
    assert written["asr/en"]["text"]["sha256"] == ""
    capsys.readouterr()
    assert loop.run(config, workdir) == final
    assert "resumed from step 4" in capsys.readouterr().err
