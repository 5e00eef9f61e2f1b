"""docs/strategies.md: its table is the registry, its code runs."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raylora.core.types import Strategy
from raylora.strategies import STRATEGIES, check, create

ROOT = Path(__file__).resolve().parent.parent.parent

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "strategies.md").read_text()
MODULE, TEST = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
HIDDEN = {"seed", "clients"}  # come from the run


def table() -> dict[str, list[str]]:
    """{strategy: the other cells}"""
    rows = PAGE.split("<!-- table:begin -->")[1].split("<!-- table:end -->")[0].strip().splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_the_table_is_the_registry() -> None:
    rows = table()
    assert list(rows) == list(STRATEGIES)
    for name, (paper, _, makes, _, _, ranks, options) in rows.items():
        factory = STRATEGIES[name]
        strategy: Strategy = factory()
        assert makes == strategy.product, name
        assert ranks == ("may differ" if strategy.mixed_ranks else "one"), name
        assert set(re.findall(r"`(\w+)`", options)) == inspect.signature(factory).parameters.keys() - HIDDEN, name
        module = sys.modules[factory.__module__]
        number = re.match(r"\[([\d.]+)\]\(https://arxiv.org/abs/\1\)", paper)
        assert (number is None) == (name in ("local", "centralised"))
        assert number is None or number[1] in (module.__doc__ or ""), name


def test_the_yaml_around_a_strategy_is_known(tmp_path: Path) -> None:
    from raylora.config import from_dict

    (around,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    config = from_dict(yaml.safe_load(around))
    assert config.privacy.clip == 0.5 and config.sampling.kind == "poisson" and config.compress.share == 0.1


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "my_package"
    folder.mkdir()
    (folder / "my_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    monkeypatch.delitem(sys.modules, "my_package.my_module", raising=False)
    return tmp_path


def test_its_code_is_short_and_its_tests_pass(package: Path) -> None:
    assert len([line for line in MODULE.split("def careful")[1].splitlines() if line.strip()]) <= 30
    tests: dict[str, object] = {}
    exec(compile(TEST, "docs/strategies.md", "exec"), tests)
    ran = [function() for name, function in tests.items() if name.startswith("test_") and callable(function)]
    assert len(ran) == 2


def test_its_tests_can_fail_and_say_why(package: Path) -> None:
    (package / "my_package" / "my_module.py").write_text(MODULE.replace("trees.freeze(trees.add(old, step))", "trees.add(old, step)"))
    failed = check(lambda: create("my_package.my_module:careful"))
    assert len(failed) == 2 and failed[0].startswith("reload: ") and f'"{failed[1]}"' in TEST


@pytest.mark.slow
@pytest.mark.ray
def test_the_command_line_runs_it(package: Path, prepared_folder: Path, tmp_path: Path) -> None:
    """As the page says, with the tiny cohort in the place of the demo's."""
    from small_runs import settings

    (command,) = re.findall(r"^raylora run \S+ (.*)$", PAGE, re.MULTILINE)
    (tmp_path / "tiny.yaml").write_text(
        yaml.safe_dump(settings(prepared_folder, "disease", training__rounds=1, placement={"clients_per_actor": "auto"}))
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # the working folder need not be there
    start = [str(Path(sys.executable).with_name("raylora")), "run", "tiny.yaml", "--output", "out"]
    done = subprocess.run([*start, *command.split()], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    resolved = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert resolved["strategy"] == {"name": "my_package.my_module:careful", "limit": 0.3}
