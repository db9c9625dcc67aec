"""Tests run stricter than users do: eight CPU devices, no implicit rank promotion, checked
shapes."""

import contextlib
import io
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
if os.environ["JAX_PLATFORMS"] == "cpu":
    # Most of the tests' time is compiling, and this halves it: the same operations on the same
    # types, in less polished machine code. `make quickstart` and commands run what users run.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from jaxtyping import install_import_hook

# Shapes and dtypes of every public boundary are checked while testing, and only then.
install_import_hook("bljust_jax", "beartype.beartype")

import jax
import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.data import synthetic

ROOT = pathlib.Path(__file__).resolve().parents[1]
CACHE = pathlib.Path(os.environ.get("BLJUST_TEST_CACHE", ROOT / ".pytest_xla_cache"))

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


MAPS = pathlib.Path("/proc/self/maps")


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Drops compiled programs before they are too many: each maps memory, and Linux ends a process
    with 65,530 maps."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 15_000:
        jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def spoken():
    """Speaks the corpora that configs for tests name, where the user's cache lacks them. Otherwise
    the first test that loads one would find on its stderr that it is being made."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(UserError, OSError):
        for name in ("tiny", "overfit"):
            synthetic.make_corpus(name)


@pytest.fixture(scope="session")
def speech():
    """The folder of real recordings beside the checkout; tests that need it skip where it is
    absent."""
    folder = ROOT.parent / "shared" / "speech"
    if not folder.is_dir():
        pytest.skip("real recordings are not here: expected them at ../shared/speech")
    return folder


@pytest.fixture
def compiled():
    """Names of the programs that XLA compiles, or takes from its cache, during a test."""
    names = []

    def listen(event, seconds, *, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)
