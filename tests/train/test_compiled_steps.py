"""Programs compiled ahead: their order, threads, memory and errors, and the wait for a late one."""

import threading
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from bljust_jax import main
from bljust_jax.bilevel.types import TrainState
from bljust_jax.common.errors import UserError
from bljust_jax.data.buckets import Bucket
from bljust_jax.data.corpus import Corpus
from bljust_jax.data.splits import empty_batch
from bljust_jax.monitoring import goodput
from bljust_jax.parallel.mesh import make_mesh
from bljust_jax.train import compile_pool, compiled_steps, program_memory
from bljust_jax.train.compile_pool import CompilePool, Job
from bljust_jax.train.program_plan import ProgramPlan, StepProgram
from bljust_jax.train.system import System

MIB = 2**20
CURE = "lower config.data.batch_seconds"


class Program:
    """A lowered and compiled program of `temporaries` bytes, which may fail or wait."""

    def __init__(self, temporaries=0, error=None, until=None, began=None):
        self.temporaries, self.error, self.until, self.began = temporaries, error, until, began

    def compile(self):
        if self.began:
            self.began.set()
        if self.until:
            assert self.until.wait(30)
        fail(self.error)
        return self

    def memory_analysis(self):
        return types.SimpleNamespace(
            argument_size_in_bytes=7 * MIB,
            output_size_in_bytes=5 * MIB,
            alias_size_in_bytes=4 * MIB,
            temp_size_in_bytes=self.temporaries,
        )


def fail(message):
    if message:
        raise jax.errors.JaxRuntimeError(message)


def job(name, *args, order=None, **options):
    def lower():
        if order is not None:
            order.append(name)
        return Program(*args, **options)

    return Job(name, CURE, lower)


@pytest.fixture
def pool():
    """pool(threads) with `logged`, closed at the end."""
    made = []

    def make(threads=1):
        logged = []
        made.append(CompilePool(make_mesh(1), threads, logged.append, goodput.Clock()))
        made[-1].logged = logged
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_jobs_compile_in_their_order_but_one_that_is_awaited_at_once(pool):
    p, order, gate, began = pool(1), [], threading.Event(), threading.Event()
    first = job("first", order=order, until=gate, began=began)
    jobs = [first, *(job(name, order=order) for name in ("second", "third", "fourth"))]
    for each in jobs:
        p.submit(each)
    assert began.wait(30)
    program = p.wait(jobs[2])
    assert isinstance(program, Program)
    assert order == ["first", "third"]
    gate.set()
    for each in jobs:
        p.wait(each)
    assert order == ["first", "third", "second", "fourth"]


def test_the_caller_may_leave_while_it_waits(pool):
    """`check` is called in the thread of the caller, which signals interrupt; no job runs in it."""
    p, gate, began, order = pool(1), threading.Event(), threading.Event(), []
    awaited = job("awaited", order=order, until=gate, began=began)
    for each in (job("first", until=gate), awaited):
        p.submit(each)

    def leave():
        if began.is_set():
            raise TimeoutError(threading.current_thread().name)

    p.check = leave
    with pytest.raises(TimeoutError, match="MainThread"):
        p.wait(awaited)
    gate.set()


def test_threads_compile_at_once_and_no_more_than_their_number(pool):
    p, gate, began = pool(2), threading.Event(), [threading.Event() for _ in range(3)]
    jobs = [job(f"{n}", until=gate, began=began[n]) for n in range(3)]
    for each in jobs:
        p.submit(each)
    assert began[0].wait(30)
    assert began[1].wait(30)
    assert not began[2].wait(0.05)
    gate.set()
    for each in jobs:
        p.wait(each)
    assert began[2].is_set()


def test_a_finished_program_is_logged_with_its_memory(pool, monkeypatch):
    monkeypatch.setattr(program_memory, "device_memory", lambda: 2**31)
    monkeypatch.setattr(compile_pool, "device_memory", lambda: 2**31)
    p = pool()
    for name in ("a", "b"):
        p.submit(job(name, 300 * MIB))
    for each in p.jobs:
        p.wait(each)
    # 7 + 5 - 4 + 300
    assert p.logged == [
        f"program {n} of 2 ({name}): 0 s; 308 MiB of 2.0 GiB memory"
        for n, name in ((1, "a"), (2, "b"))
    ]


def test_a_program_larger_than_the_device_is_refused(pool, monkeypatch):
    monkeypatch.setattr(program_memory, "device_memory", lambda: 307 * MIB)
    p, large = pool(), job("joint", 300 * MIB)
    p.submit(large)
    said = r"a batch needs 308 MiB of 307 MiB device memory \(joint\): lower config.data.batch_sec"
    with pytest.raises(UserError, match=said):
        p.wait(large)


@pytest.mark.parametrize("where", ["wait", "report"])
def test_an_error_of_a_thread_is_raised_in_the_main_thread(pool, where):
    """Of the program that is needed, and of one that will be."""
    p = pool()
    bad = job("joint", error="RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
    p.submit(bad)
    bad.future.exception(30)
    with pytest.raises(UserError, match=rf"does not fit the device \(joint\): {CURE}"):
        p.wait(bad) if where == "wait" else until_raised(p)


def until_raised(p):
    """Reports until the thread has handed its job over."""
    for _ in range(3000):
        p.report()
        threading.Event().wait(0.01)


def test_other_errors_of_the_device_stay_what_they_are(pool):
    p, bad = pool(), job("joint", error="INTERNAL: a bug")
    p.submit(bad)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        p.wait(bad)
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        program_memory.report_out_of_memory("joint", CURE),
    ):
        fail("INTERNAL: a bug")


def test_out_of_memory_of_a_step_comes_with_its_cure():
    with (
        pytest.raises(UserError, match=rf"does not fit the device \(joint\): {CURE}"),
        program_memory.report_out_of_memory("joint", CURE),
    ):
        fail("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")


def test_closing_and_exiting_wait_for_no_compilation(pool, monkeypatch):
    p, gate, began = pool(1), threading.Event(), threading.Event()
    running, queued = job("running", until=gate, began=began), job("queued")
    p.submit(running)
    p.submit(queued)
    assert began.wait(30)
    p.close(seconds=0.01)
    assert queued.future.cancelled()
    assert compile_pool.is_compiling()
    codes = []
    monkeypatch.setattr(main.os, "_exit", codes.append)
    main.exit_while_compiling(75)
    gate.set()
    p.close(seconds=30)
    if not compile_pool.is_compiling():  # no pool of another test is
        main.exit_while_compiling(75)
    assert codes == [75]
    assert running.future.done()
    assert not any(thread.is_alive() for thread in p._own)


# Steps and decoders

BUCKETS = {"labelled": (Bucket(0.5, 2, 3), Bucket(1.0, 1, 6)), "unlabelled": (Bucket(1.0, 2, 6),)}
RATE = 100


class Blanks(Corpus):
    """Empty batches of BUCKETS."""

    def __init__(self):
        self.made = []

    def empty_batches(self, buckets, *, shard=(0, 1)):
        self.made.append(dict(buckets))
        return {
            s: empty_batch(BUCKETS[s][k], BUCKETS[s][k].batch_size, RATE, labelled=s == "labelled")
            for s, k in buckets.items()
        }


def steps(pool, monkeypatch, lowered=None):
    """CompiledSteps whose programs add 1 and report the seconds of their streams."""
    mesh = make_mesh(1)

    def train_step(state, batch, seed):
        del seed
        widths = {s: (rows["audio"].shape[1], 1.0) for s, rows in batch.items()}
        return state._replace(step=state.step + 1), widths

    jitted = lowered or jax.jit(train_step)
    monkeypatch.setattr(compiled_steps, "jit_train_step", lambda *_: jitted)
    where, empty = NamedSharding(mesh, P()), ({},) * 5
    abstract = TrainState(jax.ShapeDtypeStruct((), jnp.int32, sharding=where), *empty)
    names = ("explore", "joint")
    plan = object.__new__(ProgramPlan)
    plan.groups = {names: ()}
    plan.streams = {"explore": ("unlabelled",), "joint": ("labelled", "unlabelled")}
    corpus, system = Blanks(), System(None, None, None, mesh, abstract)
    made = compiled_steps.CompiledSteps(ConfigDict({"seed": 0}), system, corpus, plan, pool)
    programs = [StepProgram(names, (("labelled", k), ("unlabelled", 0))) for k in (0, 1)]
    return made, corpus, programs, TrainState(jax.device_put(jnp.int32(0), where), *empty)


def test_a_step_finds_its_program_and_other_streams_are_empty_rows_that_stay(pool, monkeypatch):
    p = pool(2)
    made, corpus, programs, state = steps(p, monkeypatch)
    jobs = [made.submit(program) for program in programs]
    assert made.submit(programs[0]) is jobs[0]
    for each in jobs:
        p.wait(each)
    assert len(made) == 2
    corpus.made.clear()
    for now in range(3):
        state, means = made.run(now, "explore", state, put(corpus, unlabelled=0))
        widths = {k: int(v) for k, (v, _) in means.items()}
        assert widths == {"labelled": 50, "unlabelled": 100}
    batches = [{"unlabelled": 0}, {"labelled": 0}, {"unlabelled": 0}, {"unlabelled": 0}]
    assert corpus.made == batches, "the empty rows are made once"
    for k, samples in ((1, 100), (0, 50)):
        state, means = made.run(3, "joint", state, put(corpus, labelled=k, unlabelled=0))
        assert int(means["labelled"][0]) == samples
    assert int(state.step) == 5
    assert made.take_stall() == 0.0


def put(corpus, **buckets):
    return jax.device_put(corpus.empty_batches(buckets), make_mesh(1).devices.flat[0])


def test_a_step_that_waits_for_its_program_logs_it_and_counts_the_time(pool, monkeypatch):
    p, gate = pool(1), threading.Event()
    made, corpus, programs, state = steps(p, monkeypatch)
    blocker = job("blocker", until=gate)
    p.submit(blocker)
    made.submit(programs[0])
    before = p._clock.seconds()["compile"]
    made.run(12, "joint", state, put(corpus, labelled=0, unlabelled=0))
    gate.set()
    line = next(line for line in p.logged if "waits" in line)
    assert line == (
        "step 12 waits for program 2 of 2 (explore, joint: labelled 2 x 50, unlabelled 2 x 100"
        " samples)"
    )
    assert p.expected() == "; those before it took 0 s on average"
    stalled = made.take_stall()
    assert 0 < stalled <= p._clock.seconds()["compile"] - before + 0.01
    assert made.take_stall() == 0.0


def test_memory_counts_a_donated_argument_once_and_a_device_s_share():
    """256 Ki float32 = 1 MiB, in and out; 1/8 of it a device where eight share it."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def need(spec, **donate):
        x = jax.ShapeDtypeStruct((1 << 18,), jnp.float32, sharding=NamedSharding(mesh, spec))
        return program_memory.memory_needed(jax.jit(lambda x: x + 1, **donate).lower(x).compile())

    assert need(P()) == 2 * MIB
    assert need(P(), donate_argnums=0) == MIB
    assert need(P("data"), donate_argnums=0) == MIB // 8


def test_memory_of_a_cpu_device_is_its_share_of_the_machine():
    machine = program_memory.os.sysconf("SC_PHYS_PAGES") * program_memory.os.sysconf("SC_PAGE_SIZE")
    assert program_memory.device_memory() == machine // jax.local_device_count()
