"""Status lines: in place on a terminal, rare lines or none elsewhere."""

import sys
import threading

import pytest

from bljust_jax.common import console


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_a_status_is_redrawn_in_place_on_a_terminal(clock, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    line = console.StatusLine(redraw=0.5)
    for clock[0], text in ((0.6, "1 of 9, slow"), (0.9, "2 of 9"), (1.2, "3 of 9")):
        line.update(text)
    line.log("a line")
    line.clear()
    assert capsys.readouterr().err == "1 of 9, slow\r3 of 9      \r      \ra line\n"


def test_elsewhere_a_status_is_a_rare_line_or_none(clock, capsys):
    rare, never = console.StatusLine(interval=30.0), console.StatusLine()
    for clock[0] in (29.0, 30.0, 59.0, 61.0):
        rare.update(f"after {clock[0]:g} s")
        never.update("unseen")
    never.log("a line")
    assert capsys.readouterr().err == "after 30 s\nafter 61 s\na line\n"


def test_an_inactive_one_is_silent(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    line = console.StatusLine(active=False)
    line.update("unseen")
    line.log("unseen")
    line.clear()
    assert capsys.readouterr().err == ""


def test_a_slow_stage_is_named_and_a_quick_one_is_not(capsys):
    with console.log_if_slow("quick", after=60.0):
        pass
    never, shown = threading.Event(), ""
    with console.log_if_slow("slow", after=0.0):
        while shown != "slow\n":  # printed by another thread
            never.wait(0.01)
            shown += capsys.readouterr().err
    with console.log_if_slow("silent", active=False, after=0.0):
        never.wait(0.05)
    assert capsys.readouterr().err == ""
