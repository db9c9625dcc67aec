"""Scores of several tasks, their log lines and samples."""

import json
import subprocess
import sys

import numpy as np
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.inference import measures, scoring
from tests.helpers.tasks import asr, st
from tests.helpers.workdirs import read_samples

# Measures


REFERENCES = ["The cat sat on the mat.", "It's 3:30 p.m., isn't it?", "我们今天去学校。", "one two"]
HYPOTHESES = ["the cat sat on a mat.", "It's 3:30 p.m. , is it?", "我们明天去学校。", ""]


@pytest.mark.parametrize("tokenize", ["13a", "zh", "char"])
def test_bleu_and_chrf_are_those_of_the_command_of_sacrebleu(tokenize, tmp_path):
    """To the last digit that the command prints, and so are the signatures."""
    paths = [tmp_path / "references", tmp_path / "hypotheses"]
    for path, lines in zip(paths, (REFERENCES, HYPOTHESES), strict=True):
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", str(paths[0]), "-i", str(paths[1])]
    flags = ["-m", "bleu", "chrf", "--tokenize", tokenize, "-w", "12"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
    theirs = {entry["name"].lower(): entry for entry in json.loads(done.stdout)}
    ours = measures.translation(REFERENCES, HYPOTHESES, tokenize)
    assert ours["bleu"] == pytest.approx(theirs["bleu"]["score"], abs=1e-11)
    assert ours["chrf"] == pytest.approx(theirs["chrf2"]["score"], abs=1e-11)
    assert 0 < ours["bleu"] < 100
    stream = {"13a": "st/zh-en", "zh": "st/en-zh", "char": "st/en-ja"}[tokenize]
    assert measures.signatures(st(stream)) == {
        "bleu": theirs["bleu"]["signature"],
        "chrf": theirs["chrf2"]["signature"],
    }


def test_error_rates_above_one_are_told_as_they_are():
    """Every insertion counts: 8 for 2 words, 19 for 3 characters. Only the choice of the best
    weights takes all rates over 90 % for alike."""
    found = measures.recognition(["ab", "c"], ["ab x y z w", "c x yz uv wx"])
    assert (found["wer"], found["insertions"], found["words"]) == (8 / 2, 8, 2)
    assert found["cer"] == (8 + 11) / 3
    assert measures.line(found) == "WER 400.0% (S 0 D 0 I 8 of 2 words), CER 633.3%"
    assert measures.rates(found) == "WER 400.0%, CER 633.3%"
    assert measures.errors(asr(""), found) == (0.9, 19 / 3)


def test_a_corpus_is_scored_once_and_empty_translations_are_counted():
    perfect = measures.translation(["a b c d", "", "e f"], ["a b c d", "unheard", "e f"])
    assert (perfect["bleu"], perfect["chrf"]) == (pytest.approx(100), pytest.approx(100))
    assert (perfect["utterances"], perfect["without_reference"], perfect["empty"]) == (2, 1, 0)
    nothing = measures.translation(["a b c d"] * 2, ["", " "])
    assert (nothing["bleu"], nothing["chrf"], nothing["empty"]) == (0, 0, 2)
    # 4 of the 6 words, all right: the brevity penalty alone, exp(1 - 6 / 4), of the corpus
    short = measures.translation(["a b c d", "e f"], ["a b c d", ""])
    assert short["bleu"] == pytest.approx(100 * np.exp(1 - 6 / 4))


@pytest.mark.parametrize(
    ("stream", "tokenizer"),
    [
        *(("st/ar-en", "13a"), ("st/zh-en", "13a"), ("st/zh-CN-en", "13a"), ("labelled", "13a")),
        *(("st/en-zh", "zh"), ("st/en-zh-CN", "zh"), ("st/en-ja", "char"), ("st/en-sv-SE", "13a")),
    ],
)
def test_the_tokenizer_is_that_of_the_target_language(stream, tokenizer):
    assert measures.tokenizer_for(stream) == tokenizer


@pytest.mark.parametrize("task", [asr("asr/en", "bleu"), st("st/ar-en", "wer")])
def test_a_measure_that_a_task_has_not_is_a_mistake(task):
    with pytest.raises(UserError, match=rf"{task.name}\.measure='{task.measure}': "):
        measures.check(task)
    for good in (asr(""), asr("asr/zh", "cer"), st("st/ar-en")):
        measures.check(good)


# Several tasks together


def scored(**scores):
    """{task: (wer or bleu, cer or chrf)} as a split of those tasks."""
    tasks, results = [], {}
    for name, (first, second) in scores.items():
        name = name.replace("_", "/", 1).replace("_", "-")
        keys = ("wer", "cer") if name.startswith("asr") else ("bleu", "chrf")
        tasks.append((asr if name.startswith("asr") else st)(name))
        found = dict(zip(keys, (first, second), strict=True))
        found |= dict.fromkeys(("substitutions", "deletions", "insertions", "words"), 1)
        found |= {"utterances": 8} | ({"blank_share": 0.5} if "wer" in found else {})
        results[name] = scoring.Result({f"dev/{name}/{k}": v for k, v in found.items()}, [])
    return scoring.Scored("dev", tuple(tasks), results)


def test_scores_are_those_of_each_task_and_means():
    found = scored(asr_ar=(0.5, 0.2), asr_en=(1.5, 0.4), st_ar_en=(30.0, 50.0)).scores
    assert found["dev/asr/en/wer"] == 1.5
    assert found["dev/st/ar-en/bleu"] == 30
    means = {k: v for k, v in found.items() if k.count("/") == 1}
    expected = {"dev/wer": 1.0, "dev/cer": 0.3, "dev/bleu": 30, "dev/chrf": 50}
    assert means == {k: pytest.approx(v) for k, v in expected.items()}


def test_the_best_weights_have_least_of_the_mean_error_of_each_task_s_measure():
    """Error rates over 90 % count as 90 %; equal ones are decided by characters."""
    found = scored(asr_ar=(0.5, 0.2), asr_en=(1.5, 0.4), st_ar_en=(30.0, 50.0))
    assert found.rank == [pytest.approx((0.5 + 0.9 + 0.7) / 3), pytest.approx(1.1 / 3)]
    by_characters = (asr("asr/ar", "cer"), *found.tasks[1:])
    assert found._replace(tasks=by_characters).rank[0] == pytest.approx((0.2 + 0.9 + 0.7) / 3)
    more = scored(asr_ar=(0.5, 0.2), asr_en=(1.5, 0.4), st_ar_en=(31.0, 50.0))
    finer = scored(asr_ar=(0.5, 0.1), asr_en=(1.5, 0.4), st_ar_en=(30.0, 50.0))
    assert more.rank < finer.rank < found.rank


def test_lines_for_people_are_one_a_task_and_the_means():
    lines = scored(asr_ar=(1.0, 0.6), asr_en=(1.5, 0.8), st_ar_en=(30.0, 50.0)).describe(0)
    assert [line for line in lines if line != scoring.NOT_LEARNED] == [
        "dev/asr/ar:   WER 100.0% (S 1 D 1 I 1 of 1 words), CER 60.0%, blanks 50.0%",
        "dev/asr/en:   WER 150.0% (S 1 D 1 I 1 of 1 words), CER 80.0%, blanks 50.0%",
        "dev/st/ar-en: BLEU 30.00, chrF 50.00 of 8 texts",
        "dev:          WER 125.0%, CER 70.0%, BLEU 30.00, chrF 50.00, means",
    ]
    assert lines.count(scoring.NOT_LEARNED) == 1
    # a word a sentence, as in Chinese
    assert scoring.NOT_LEARNED not in scored(asr_zh=(1.0, 0.1)).describe(0)


def test_samples_are_a_file_a_task(tmp_path):
    pair = {"id": "u", "reference": "a", "hypothesis": "b"}
    found = scored(asr_ar=(0.5, 0.2), st_ar_en=(30.0, 50.0))
    results = {name: result._replace(pairs=[pair]) for name, result in found.results.items()}
    scoring.write_samples(tmp_path, "best", found._replace(results=results))
    names = ["dev-asr_ar-best.jsonl", "dev-st_ar-en-best.jsonl"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert read_samples(tmp_path / names[1]) == [pair]
    assert scoring.sample_file("dev", "", 8) == "dev-8.jsonl"
