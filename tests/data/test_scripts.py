"""Error rates by script: which suits a corpus, and the tokens of the mixed error rate."""

import pytest

from bljust_jax.data import scripts
from bljust_jax.inference import measures
from tests.helpers.tasks import asr


@pytest.mark.parametrize(
    ("texts", "measure"),
    [
        (["we call it bear", "the red sand"], "wer"),
        (["seven", "five"], "wer"),  # single words have no spaces either
        (["شكرا جزيلا", "واحد"], "wer"),
        (["한국어 문장 입니다"], "wer"),
        (["我们今天去学校", "明天见"], "cer"),
        (["我们 今天 去 学校", "明天 见"], "wer"),  # divided into words already
        (["สวัสดีครับ", "วันนี้อากาศดี มาก"], "cer"),
        (["今日は東京へ行きます", "ありがとう"], "cer"),
        (["我用 python 写代码", "打开 youtube"], "mer"),
        (["我们今天去学校" * 9, "ok"], "cer"),
        ([], "wer"),
    ],
)
def test_the_measure_follows_from_spaces_and_script(texts, measure):
    assert scripts.measure_of(texts) == measure


def test_mixed_tokens_are_characters_of_unspaced_scripts_and_words_of_others():
    assert scripts.mixed_tokens("我用 python写代码 ok") == "我 用 python 写 代 码 ok"
    assert scripts.mixed_tokens("plain words") == "plain words"


def test_the_mixed_error_rate_is_that_of_these_tokens():
    """One of five tokens is wrong; of two words, one; without such letters there is no MER."""
    found = measures.recognition(["我用 python 写码"], ["我用 python 写吗"])
    assert (found["mer"], found["wer"]) == (1 / 5, 1 / 3)
    assert measures.line(found).endswith(", MER 20.0%")
    assert measures.errors(asr("", "mer"), found) == (1 / 5, found["cer"])
    plain = measures.recognition(["a b"], ["a c"])
    assert "mer" not in plain
    assert measures.errors(asr("", "mer"), plain)[0] == plain["wer"] == 1 / 2
