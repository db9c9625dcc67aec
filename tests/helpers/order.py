"""The order of test files over workers: the longest first, so that all workers end together, and
those that share programs on one worker."""

# by CPU seconds, most first (results/README.md, "Tests")
LONGEST = (
    "tests/test_laws.py",
    "tests/train/test_loop.py",
    "tests/recipes/test_m2asr.py",
    "tests/models/test_conformer.py",
    "tests/tasks/test_tasks.py",
    "tests/faults/test_run.py",
    "tests/models/test_wav2vec2.py",
    "tests/train/test_init_from.py",
    "tests/docs/test_scenario.py",
    "tests/models/test_attention.py",
    "tests/bilevel/test_shared_phases.py",
    "tests/bilevel/test_gradients.py",
    "tests/objectives/test_birq.py",
    "tests/objectives/test_cpc.py",
    "tests/checkpoint/test_manager.py",
    "tests/bilevel/test_freeze.py",
    "tests/ops/test_nemo.py",
    "tests/models/test_conformer_variants.py",
    "tests/test_evaluate.py",
    "tests/models/test_subsampling.py",
)
# {file: the file whose programs it runs}
TOGETHER = dict.fromkeys(
    ("tests/faults/test_silent_rows.py", "tests/bilevel/test_accumulate.py"), "tests/test_laws.py"
)


def unit(nodeid: str) -> str:
    """The file of a test, or the one whose worker it runs on."""
    file = nodeid.partition("::")[0]
    return TOGETHER.get(file, file)


def rank(nodeid: str) -> int:
    """Sort key of tests; stable sorting keeps the order within a file."""
    file = unit(nodeid)
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)
