"""`bench device`: order, resumption, crashes and lines of the items; the items themselves on a CPU
at tiny shapes."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bljust_jax import bench as command
from bljust_jax.benchmarks import device, device_items, device_names
from bljust_jax.benchmarks.device_names import Item
from bljust_jax.common import cli
from bljust_jax.common.errors import UserError

ITEMS = [Item("copy"), Item("product"), Item("step/a"), Item("step/b", "--flag"), Item("ctc")]


class Workers:
    """Starts fake workers that answer as told and record what they are asked."""

    def __init__(self, answers=None):
        self.answers, self.log = answers or {}, []

    def __call__(self, flags):
        workers = self

        class Fake:
            def __init__(self):
                self.machine, self.ended, self.flags = {"device": "Fake GPU 1"}, False, flags
                workers.log.append(f"start {flags}".strip())

            def measure(self, name):
                workers.log.append(name)
                if workers.answers.get(name) == "crash":
                    self.ended = True
                    return {"error": "the process ended with exit code -6"}
                if workers.answers.get(name) == "stop":
                    raise KeyboardInterrupt
                return workers.answers.get(name, {"value": {"ms": 1.5}, "seconds": 2.0})

            def close(self):
                workers.log.append("close")

        return Fake()


def test_items_of_other_flags_have_a_process_of_their_own(tmp_path, capsys):
    workers = Workers()
    assert device.measure(ITEMS, tmp_path, start=workers) == 0
    assert workers.log == [
        *("start", "copy", "product", "step/a", "close"),
        *("start --flag", "step/b", "close", "start", "ctc", "close"),
    ]
    assert capsys.readouterr().out.splitlines()[0] == "copy: ms 1.5 (2.0 s)"
    found = json.loads((tmp_path / "Fake-GPU-1-items.json").read_text())
    assert found["machine"] == {"device": "Fake GPU 1"}
    assert list(found["items"]) == [item.name for item in ITEMS]
    assert found["items"]["step/b"]["flags"] == "--flag"


def test_an_interrupted_run_resumes_with_the_missing_items(tmp_path):
    path = tmp_path / "new" / "items.json"
    with pytest.raises(KeyboardInterrupt):
        device.measure(ITEMS, path, start=Workers({"step/a": "stop"}))
    assert list(json.loads(path.read_text())["items"]) == ["copy", "product"]
    workers = Workers()
    device.measure(ITEMS, path, start=workers)
    assert [line for line in workers.log if not line.startswith(("start", "close"))] == [
        *("step/a", "step/b", "ctc")
    ]
    again = Workers()
    device.measure(ITEMS[:1], path, again=True, start=again)
    assert "copy" in again.log
    assert len(json.loads(path.read_text())["items"]) == 5


def test_a_crash_ends_one_item_and_is_tried_again(tmp_path, capsys):
    path = tmp_path / "items.json"
    workers = Workers({"product": "crash", "ctc": {"absent": "no such GPU", "seconds": 0.1}})
    assert device.measure(ITEMS, path, start=workers) == 1
    assert workers.log[:6] == ["start", "copy", "product", "close", "start", "step/a"]
    lines = capsys.readouterr().out.splitlines()
    assert "product: error: the process ended with exit code -6" in lines
    assert "ctc: absent: no such GPU" in lines
    workers = Workers()
    assert device.measure(ITEMS, path, start=workers) == 0
    assert "product" in workers.log
    assert "ctc" not in workers.log


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "items.json"
    for text in ("[]", "{}", "{"):
        path.write_text(text)
        with pytest.raises(UserError, match="not a file of measured items: move it away"):
            device.read(path)


def test_a_process_that_dies_is_an_answer(monkeypatch, tmp_path):
    """The real pipe: a worker that aborts at its second line."""
    code = (
        'import sys, os\nprint(\'{"device": "x"}\', flush=True)\n'
        'sys.stdin.readline(); print(\'{"value": {}, "seconds": 1}\', flush=True)\n'
        "sys.stdin.readline(); os.abort()"
    )
    popen = subprocess.Popen
    monkeypatch.setattr(
        device.subprocess,
        "Popen",
        lambda _, **options: popen([sys.executable, "-c", code], **options),
    )
    worker = device.Worker("--flag")
    assert worker.machine == {"device": "x"}
    assert worker.measure("a") == {"value": {}, "seconds": 1}
    assert worker.measure("b") == {"error": "the process ended with exit code -6"}
    assert worker.ended
    worker.close()


def test_names_are_those_of_the_table():
    names = [item.name for item in device_names.ITEMS]
    assert len(set(names)) == len(names)
    assert {item.kind for item in device_names.ITEMS} == set(device_items.KINDS)
    chosen = device.choose("CTC xla,copy")
    assert [item.name for item in chosen] == ["copy", "step/CTC xla"]


def test_the_command_lists_items_and_refuses_unknown_ones(capsys):
    assert command.main(["device", "--list"]) == cli.DONE
    printed = capsys.readouterr().out.splitlines()
    assert printed == [item.name for item in device_names.ITEMS]
    for arguments, message in (
        (["device", "--items", "attn"], "no item of that name; --list prints them"),
        (["device", "ctc"], "name it alone"),
        (["ctc", "--list"], "belong to device"),
    ):
        assert command.main(arguments) == cli.USER_ERROR
        assert message in capsys.readouterr().err


def test_two_calls_measure_each_item_once_in_the_end(tmp_path, capfd):
    """Real workers on this machine, with another XLA flag for a product."""
    options = ["device", "--json", str(tmp_path), "--items"]
    assert command.main([*options, "copy"]) == cli.DONE
    assert command.main([*options, "copy,product,attention/cudnn/400"]) == cli.DONE
    printed = capfd.readouterr().out
    assert [line.partition(":")[0] for line in printed.splitlines()] == [
        *("copy", "product", "attention/cudnn/400", "attention/cudnn/400/again")
    ]
    (path,) = tmp_path.iterdir()
    found = json.loads(path.read_text())
    assert found["machine"]["packages"]["jax"] == jax.__version__
    assert found["items"]["product"]["value"]["TFLOP_per_s"] > 0
    again = found["items"]["attention/cudnn/400/again"]
    assert again["flags"] == device_names.DETERMINISTIC
    assert "GPU" in again["absent"]


def test_attention_is_compared_with_float32_in_all_its_gradients():
    found = device_items.attention("xla", "351")
    assert found["T"] == 7
    for context in ("full", "causal"):
        errors = [found[context][name] for name in ("out", "dq", "dk", "dv", "dbias")]
        assert all(0 < error < 0.03 for error in errors), "bfloat16 rounding"
        assert found[context]["equal_bits"]


def test_an_error_that_is_not_finite_is_infinite():
    exact = jnp.array([1.0, 2.0])
    assert device_items.relative_error(jnp.array([1.0, np.nan]), exact) == np.inf
    assert device_items.relative_error(jnp.array([1.0, 2.5]), exact) == 0.25


@pytest.mark.parametrize("name", ["layer norm", "feed-forward"])
def test_a_layer_has_times_and_bytes(name):
    found = device_items.kernel(name)
    assert found["ms"] > 0
    # x bfloat16 [4, 12, 32] is read and its gradient written
    assert found["GB"] * 1e9 > 2 * 2 * 4 * 12 * 32
    assert found["TB_per_s"] == pytest.approx(found["GB"] / found["ms"])


def test_words_of_an_item_are_config_fields():
    assert device_items.fields_of(["names", "rope", "fast", "cudnn"]) == {
        "model__remat": "names",
        "model__positions": "rope",
        "model__subsampling": "parakeet",
        "model__channels": 8,
        "model__attention": "cudnn",
    }


@pytest.mark.slow
def test_blocks_and_steps_and_a_trace():
    """Minutes of compiling: under each policy, with losses of the first step."""
    for name in ("none xla", "names xla"):
        assert device_items.blocks(name)["kernels"] > 0
    found = device_items.whole_step("CTC rope fast xla")
    assert found["ms"] > 0
    assert found["audio_s_per_s"] == pytest.approx(4 / found["ms"] * 1e3)
    assert found["first step"]["train/ctc/loss"] > 0
    traced = device_items.trace("CTC xla")
    assert traced["ms"] > 0
    assert len(traced["longest"]) > 10


def event(name, pid, tid, dur):
    return {"ph": "X", "name": name, "pid": pid, "tid": tid, "dur": dur}


def test_kernels_of_a_trace_are_those_of_streams():
    named = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "/device:GPU:0"}},
        {"ph": "M", "name": "process_name", "pid": 2, "args": {"name": "/host:CPU"}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 5, "args": {"name": "Stream #13"}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 6, "args": {"name": "XLA Modules"}},
    ]
    spent = [event("gemm", 1, 5, 7), event("gemm", 1, 5, 4), event("copy", 1, 5, 2)]
    rest = [event("jit_step", 1, 6, 13), event("python", 2, 1, 99)]
    assert device_items.kernel_times(named + spent + rest) == {"gemm": 11, "copy": 2}
    host = device_items.kernel_times([named[1], *rest[1:]])
    assert host == {"python": 99}
