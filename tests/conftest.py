"""Settings and fixtures of all tests: eight CPU devices, checked shapes, a shared compile cache."""

import contextlib
import gc
import io
import os
import pathlib
import signal
import sys

from tests.helpers import environment

# Workers and children read the bytecode of the package, with its checks, and of the tests.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

environment.set_up()

from jaxtyping import install_import_hook

# Check shapes and dtypes of every public function while testing, and only then.
install_import_hook("bljust_jax", "beartype.beartype")

import jax
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data import synthetic
from tests.helpers import daily, ir_context, order

ROOT = pathlib.Path(__file__).resolve().parents[1]

jax.config.update("jax_numpy_rank_promotion", "raise")
# do not look up the source line of each operation: 7 % of the CPU time of tests of models
jax.config.update("jax_traceback_in_locations_limit", 0)
ir_context.share()

MAPS = pathlib.Path("/proc/self/maps")


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem():
    """Of a test marked `daily`, the cases not chosen are slow (`tests.helpers.daily`)."""
    made = yield
    daily.mark_the_others(made if isinstance(made, list) else ())
    return made


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: order.rank(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """`--dist loadfile` in the order of `tests.helpers.order`, not by the number of tests."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    scheduling = LoadFileScheduling(config, log)
    scheduling._split_scope = order.unit
    return scheduling


def pytest_collection_finish():
    """Exclude modules, as many objects as tests leave, from each pass of the garbage collector, and
    pass seldom: at the default threshold passes take 6 % of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


@pytest.fixture
def add_module(tmp_path, monkeypatch):
    """(package, name, source): writes a module of a package into a folder that the package also
    looks in."""

    def write(package, name, source):
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)

    return write


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Drop compiled programs before there are too many: each maps memory, and Linux kills a process
    with 65,530 maps."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def synthetic_corpora():
    """Synthesise the corpora of the test configs where the user's cache lacks them. Otherwise the
    first test that loads one finds the progress of synthesis on its stderr."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(UserError, OSError):
        for name in ("tiny", "overfit"):
            synthetic.make_corpus(name)


def shared_folder(name):
    """The folder ../shared/NAME beside the checkout; the test skips where it is absent."""
    folder = ROOT.parent / "shared" / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not here: expected at ../shared/{name}")
    return folder


@pytest.fixture(scope="session")
def speech():
    """The folder of real recordings."""
    return shared_folder("speech")


@pytest.fixture(scope="session")
def cases():
    """The folder of small inputs that failed once."""
    return shared_folder("cases")


@pytest.fixture
def default_signals():
    """Signals that do until the test ends what they do in a terminal: tests started by nohup ignore
    SIGHUP, and those started in the background SIGINT."""
    defaults = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def compiled():
    """Names of the programs that XLA compiles, or reads from its cache, during a test."""
    names = []

    def listen(event, seconds, *, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)
