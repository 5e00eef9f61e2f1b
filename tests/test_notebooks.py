"""The notebooks run as they are in a fresh clone, and are kept with what they put out then."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook, new_output
from small_runs import settings

from benchmarks import notebooks
from raylora.core.errors import InputError, RunError

ROOT = Path(__file__).resolve().parent.parent
STORED = notebooks.notebooks()


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: nbformat.NotebookNode) -> set[str]:
    """What a cell puts out: streams, and the forms of its values."""
    return {kind for output in cell.outputs for kind in ([output.name] if output.output_type == "stream" else output.data)}


SMALLER = {  # what cells name themselves; the commands' clients are in their own process
    "!raylora ": "!$$HERE ",
    "--patients 28": "--patients 15",
    "--size 64 64 12": "--size 32 32 12",
    "data.size=[64,64,12]": "data.size=[32,32,12]",
    "training.local_steps=6": "training.local_steps=1",
    "lora.rank: {grid: [2, 16]}": "lora.rank: {grid: [2]}",
    "training.rounds=3": "training.rounds=2",
    "training: {rounds: 2, local_steps: 4}": "training: {rounds: 2, local_steps: 1}",
    "data.phantom.patients=40 data.phantom.seed=3 data.fractions=[0.4,0.15,0.15,0.3]": "",  # the cohort of `small_configs` instead
    "data: {phantom: {patients: 40, seed: 3}, fractions: [0.4, 0.15, 0.15, 0.3]}": "data: {}",
}


def smaller(path: Path, folder: Path) -> Path:
    """A copy of a notebook that does less of the same."""
    text = path.read_text(encoding="utf-8")
    for stored, instead in SMALLER.items():
        text = text.replace(stored, instead)
    folder.mkdir()
    (folder / path.name).write_text(text, encoding="utf-8")
    return folder / path.name


def test_what_is_made_smaller_stands_in_a_notebook():
    text = "".join(path.read_text(encoding="utf-8") for path in STORED)
    assert [stored for stored in SMALLER if stored not in text] == []


@pytest.fixture
def small_configs(tmp_path, prepared_folder) -> Path:
    """The configurations of a clone, with all clients in one actor; the one that most notebooks start from is on the tests' own small cohort,
    and trains a step a round."""
    folder = tmp_path / "small"
    shutil.copytree(ROOT / "configs", folder)
    for name in ("demo_segmentation.yaml", "acdc_segmentation.yaml"):
        values = yaml.safe_load((folder / name).read_text())
        values["placement"] = {"clients_per_actor": 5}
        if name.startswith("demo"):
            values["data"] = settings(prepared_folder)["data"]
            values["training"] |= {"local_steps": 1}
        (folder / name).write_text(yaml.safe_dump(values))
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Iterator[str]:
    """What runs the notebooks' commands: forks of one process, which loads torch once for all of them."""
    path = str(tmp_path_factory.mktemp("here") / "socket")
    with subprocess.Popen([sys.executable, ROOT / "tests" / "serve.py", path], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            yield f"{sys.executable} -IS {ROOT / 'tests' / 'ask.py'} {path}"
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, small_configs, here, monkeypatch):
    monkeypatch.setenv("HERE", here)
    done = notebooks.execute(smaller(path, tmp_path / "stored"), tmp_path, small_configs)
    assert notebooks.faults(done) == []
    stored = notebooks.read(path)
    assert [kinds(cell) for cell in code(done)] == [kinds(cell) for cell in code(stored)], "`make notebooks` keeps the outputs"


def test_there_are_four():
    assert [path.name[0] for path in STORED] == list("1234")
    assert notebooks.notebooks(["2_"]) == STORED[1:2]
    with pytest.raises(InputError, match=r"^expected a notebook's name or its beginning \(1_.*\), found 5$"):
        notebooks.notebooks(["5"])


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_it_is_kept_with_its_outputs_and_nothing_else(path):
    stored = notebooks.read(path)
    assert notebooks.faults(stored) == []
    assert any("image/png" in kinds(cell) for cell in code(stored))
    assert [cell.execution_count for cell in code(stored)] == list(range(1, len(code(stored)) + 1))
    assert notebooks.stripped(notebooks.read(path)) == stored
    assert path.stat().st_size < 1_500_000


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_it_reads_results_and_links_to_what_is_there(path):
    stored = notebooks.read(path)
    prose = "\n".join(cell.source for cell in stored.cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", prose) if not link.startswith("http")]
    assert all((path.parent / link).exists() for link in links), links
    assert "raylora" in prose and not any(re.search(r"^class ", cell.source, re.MULTILINE) for cell in code(stored))


def test_the_strategy_is_the_one_of_the_page():
    (written,) = [cell for cell in code(notebooks.read(STORED[2])) if cell.source.startswith("%%writefile")]
    page = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8"), re.DOTALL)
    assert written.source.partition("\n")[2].strip() == page[0].strip()


def one(text: str) -> nbformat.NotebookNode:
    return new_notebook(cells=[new_code_cell("1", execution_count=1, outputs=[new_output("stream", text=text)])])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x\nraylora: no such file\n", "an error of the command line: raylora: no such file"),
        ("cat: x: No such file or directory", "a command that failed: No such file or directory"),
        ("Traceback (most recent call last):", "a traceback: Traceback (most recent call last)"),
        ("everything is in /home/somebody/runs/1: report.html", "a path of a machine: /home/somebody"),
        ("sqlite:////var/lib/x.db", "a path of a machine: /var/lib"),
        ('root="/data/ACDC"', "a path of a machine: /data/ACDC"),
        ("2019/03/04 12:00:00 INFO", "a date: 2019/03/04"),
    ],
)
def test_what_must_not_be_kept_is_seen(text, said):
    assert notebooks.faults(one(text)) == [f"cell 0: {said}"]


@pytest.mark.parametrize(
    "text",
    [
        "out/first/run",
        "https://arxiv.org/abs/1602.05629",
        "ED/ES 3/4",
        "<b>1</b></td>",
        "/path/to/ACDC",
        "../a/b.yaml",
        "sqlite:///out/x.db",
        "> /dev/null",
        "{ACDC}/training/patient001",
    ],
)
def test_what_may_be_kept_is_not(text):
    assert notebooks.faults(one(text)) == []


def test_a_cell_that_was_not_executed_is_seen():
    assert notebooks.faults(new_notebook(cells=[new_code_cell("1")])) == ["cell 0: was not executed"]


@pytest.mark.slow
def test_one_that_fails_says_why_and_is_not_kept(tmp_path, monkeypatch):
    broken = tmp_path / "broken.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("print('\\x1b[31mraylora: it went wrong')"), new_code_cell("1 / 0")]), broken)
    before = broken.read_bytes()
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    with pytest.raises(RunError, match=r"^broken.ipynb: .*raylora: it went wrong; ZeroDivisionError: division by zero$"):
        notebooks.main([])
    assert broken.read_bytes() == before
