"""CPU seconds per test: a pytest plugin that appends [test, seconds] to the file CPU_TIMES names.

    CPU_TIMES=times.jsonl python -m pytest -p tests.helpers.cpu_times -m "not slow and not gpu"

Seconds are user and system time of the worker and of the children it has waited for.
"""

import json
import os

import pytest


def _now() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    began = _now()
    done = yield
    with open(os.environ["CPU_TIMES"], "a") as file:
        file.write(json.dumps([item.nodeid, round(_now() - began, 3)]) + "\n")
    return done
