"""Fixtures that every part of the tests shares."""

import os
import shutil
import signal
from pathlib import Path

import hypothesis
import pytest
from parts import CORE, PARTS, Seconds, part
from small_studies import Writer, cohort

ROOT = Path(__file__).resolve().parent.parent
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None)  # new examples: `pytest --hypothesis-profile=default`
hypothesis.settings.load_profile("suite")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that was started in the background would hand down that it is ignored


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", choices=(CORE, *PARTS), help="only the tests of this part (tests/parts.py)")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the process that prints
        config.pluginmanager.register(Seconds(processes=getattr(config.option, "numprocesses", None) or 1))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first, then the slow ones, those that start Ray last: what is broken shows early. Of the last ones those that may take
    longest come first, or one of several processes would wait for another's at the end."""

    def place(item: pytest.Item) -> tuple[int, float, bool]:
        slow, timeout = item.get_closest_marker("slow") is not None, item.get_closest_marker("timeout")
        if item.get_closest_marker("ray") is None:
            return int(slow), 0.0, False
        return 2, -float(timeout.args[0] if timeout else 0), not slow

    items.sort(key=place)
    if (only := config.getoption("--part")) is not None:
        config.hook.pytest_deselected(items=[item for item in items if part(item.nodeid) != only])
        items[:] = [item for item in items if part(item.nodeid) == only]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference values and real studies, or a skip: they are not part of the project."""
    folder = Path(os.environ.get("RAYLORA_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared folder at {folder} (set RAYLORA_SHARED)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What runs keep between them, here and in the processes that they start: never the user's own cache. One for all of pytest's
    processes: a cohort of phantoms takes seconds."""
    mine = tmp_path_factory.getbasetemp()
    folder = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "cache"
    folder.mkdir(exist_ok=True)
    os.environ["RAYLORA_CACHE"] = str(folder)
    return folder


@pytest.fixture
def write() -> Writer:
    return Writer()


@pytest.fixture(scope="session")
def cohort_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny four-vendor cohort as NIfTI files in the M&Ms layout. Read it, never write to it."""
    return cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="session")
def prepared_folder(cohort_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, prepared for the configurations of `small_runs`."""
    from small_runs import GRID

    from raylora.data import mnms
    from raylora.data.manifest import PrepareOptions
    from raylora.data.prepare import prepare

    out = tmp_path_factory.mktemp("prepared") / "mnms"
    prepare(mnms.scan(cohort_folder), out, PrepareOptions(spacing_mm=tuple(GRID["spacing_mm"]), size=tuple(GRID["size"])))
    return out


@pytest.fixture(scope="session")
def runs(prepared_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """`runs(task, **overrides)`: a finished in-process run, each one made once for all tests. Read its folder, never write to it."""
    from small_runs import Runs

    return Runs(prepared_folder, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make its tables: once is enough."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_uri(empty_database: Path, tmp_path: Path) -> str:
    """A real and empty MLflow database: `mlflow.db` in the test's folder."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(scope="session")
def ray_cluster():
    """One local Ray for all tests that need one: four CPUs and one GPU that exists in its books only."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    from raylora.cluster.local import NOBODY_LOOKS, spared

    os.environ.update(NOBODY_LOOKS)
    with spared(environments=True):  # for sweeps
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=1,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=128 << 20,
        )
    for name in NOBODY_LOOKS:  # and no more: RAY_AUTH_MODE, which Ray sets here, lets commands that are told its address in
        del os.environ[name]
    yield
    ray.shutdown()
