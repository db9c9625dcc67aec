"""`--profile_steps`: parsing, and a trace with exactly these steps."""

import jax
import jax.numpy as jnp
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.monitoring import profiler
from tests.helpers.processes import QUICK, run_command


def test_steps_are_named_by_the_first_and_the_one_after_the_last():
    assert profiler.parse("20:25") == range(20, 25)
    assert not profiler.parse("")


@pytest.mark.parametrize("given", ["5", "5:5", "7:3", "-1:3", "a:b", "1:2:3", "1.5:3", ":4"])
def test_other_steps_are_refused(given):
    with pytest.raises(UserError, match=rf"--profile_steps={given} must be A:B"):
        profiler.parse(given)


def test_wrong_steps_are_one_line_before_jax():
    done = run_command(QUICK, "--profile_steps=8:2")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --profile_steps=8:2 must be A:B")


def test_steps_beyond_the_run_are_refused(tmp_path):
    with pytest.raises(UserError, match="--profile_steps=8:12 is beyond the run's 11 steps"):
        profiler.Tracer(range(8, 12), tmp_path, total=11)


def recorded(folder):
    """Numbers of the steps in the one trace of a folder."""
    (path,) = (folder / "profile").rglob("*.xplane.pb")
    return [
        dict(event.stats)["step_num"]
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes
        for line in plane.lines
        for event in line.events
        if event.name == profiler.STEP
    ]


@pytest.mark.daily("0-4-*")
@pytest.mark.filterwarnings("ignore:builtin type event_stats")  # an error aborts jaxlib there
@pytest.mark.parametrize(
    ("start", "stop", "steps"), [(0, 9, [3, 4]), (4, 9, [4]), (0, 4, [3]), (5, 9, None)]
)
def test_the_trace_holds_the_steps(start, stop, steps, tmp_path):
    """Also of a run that is resumed within the window, or ends in it; none after it."""
    tracer = profiler.Tracer(range(3, 5), tmp_path, total=9)
    add = jax.jit(lambda x, n: x + n)
    state = jnp.zeros(())
    for now in range(start, stop):
        with tracer.step(now):
            state = add(state, 1.0)
    tracer.close()
    assert state == stop - start
    if steps is None:
        assert not (tmp_path / "profile").exists()
    else:
        assert recorded(tmp_path) == steps
