"""The starvation alarm logs an objective without weight once, and may end the run."""

import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.monitoring.starved_objective import StarvationAlarm
from configs import librispeech, m2asr


def row(asr, st):
    return {"moo/weight/asr/ar": asr, "moo/weight/st/ar-en": st, "moo/norm/asr/ar": 0.0, "step": 1}


def test_it_warns_after_consecutive_rows_and_once_and_on_recovery():
    alarm = StarvationAlarm(0.02, 2, stop=False)
    weights = (0.5, 0.01, 0.5, 0.01, 0.019, 0.0)
    assert [len(alarm(row(w, 1 - w))) for w in weights] == [0, 0, 0, 0, 1, 0]
    (line,) = alarm(row(0.02, 0.98))
    assert line == "objective asr/ar has recovered: its weight is 0.020"


def test_objectives_are_counted_apart():
    alarm = StarvationAlarm(0.02, 1, stop=False)
    (line,) = alarm(row(0.001, 0.999))
    assert line.startswith("objective asr/ar starves: its weight has been under 0.02 for 1 rows")
    first, second = alarm(row(0.999, 0.001))
    assert first.startswith("objective asr/ar has recovered")
    assert second.startswith("objective st/ar-en starves")


def test_it_may_end_the_run():
    alarm = StarvationAlarm(0.02, 1, stop=True)
    assert alarm(row(0.1, 0.9)) == []
    with pytest.raises(UserError, match=r"objective asr/ar starves.*config\.moo\.rho"):
        alarm(row(0.01, 0.99))


def test_it_is_on_where_there_are_dynamic_weights():
    assert StarvationAlarm.of(m2asr.get_config())(row(0.01, 0.99))
    assert not StarvationAlarm.of(librispeech.get_config())(row(0.0, 1.0))
