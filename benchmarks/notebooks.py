"""`make notebooks`: runs every notebook from its first cell to its last and keeps it with its outputs.

Each runs in a temporary folder with the layout of a clone (`notebooks/` beside `configs/`), on a kernel of the interpreter that runs this.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from raylora.cli import guarded
from raylora.core.errors import InputError, RunError
from raylora.core.files import replacing

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
CELL_S = 600  # a cell that takes longer hangs

TERMINAL = re.compile(r"\x1b\[[\d;]*m|\r(?=\n)")  # colours, and how a terminal ends lines

# What an output must not show; the prose may say /path/to/something.
UNWANTED = {
    "a traceback": re.compile(r"Traceback \(most recent call last\)"),
    "an error of the command line": re.compile(r"^raylora: .*", re.MULTILINE),
    "a command that failed": re.compile(r"No such file or directory|command not found"),
    "a path of a machine": re.compile(r"(?<![\w<.~}])(?<!:/)(?<!sqlite://)/(?!path/|dev/null)[A-Za-z_][\w.-]*/[\w.-]+"),
    "a date": re.compile(r"\b20\d\d[-/]\d\d[-/]\d\d\b"),
}


def notebooks(names: Sequence[str] = ()) -> list[Path]:
    """The stored notebooks in order, or those whose name begins like one of `names`. Raises InputError."""
    found = sorted(NOTEBOOKS.glob("*.ipynb"))
    known = ", ".join(path.name for path in found)
    for name in names:
        if not any(path.name.startswith(name) for path in found):
            raise InputError(f"expected a notebook's name or its beginning ({known}), found {name}")
    return [path for path in found if not names or any(path.name.startswith(name) for name in names)]


def read(path: Path) -> NotebookNode:
    """A notebook that keeps to the format. Raises nbformat's ValidationError."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def execute(path: Path, folder: Path, configs: Path = ROOT / "configs") -> NotebookNode:
    """Run a notebook in `folder`, which is made into the layout of a clone. Returns it with its outputs. Raises RunError.

    `configs`: the configurations that it finds there; a test's are of smaller experiments.
    """
    place = folder / "notebooks"
    place.mkdir()
    (folder / "configs").symlink_to(configs)
    notebook = read(path)
    ours = KernelSpecManager(kernel_dirs=[])  # of all kernels called python3 that of this interpreter
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ours)
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=CELL_S,
        startup_timeout=CELL_S,
        iopub_timeout=CELL_S,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(place)}},
        extra_arguments=["--log-level=ERROR"],  # the kernel's remarks on itself are no output
    )
    own = {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),  # where the command raylora is
        "IPYTHONDIR": str(folder / "ipython"),  # nobody's own settings
        "RAYLORA_CACHE": os.environ.get("RAYLORA_CACHE", str(folder / "cache")),
    }
    try:
        client.execute(cleanup_kc=True, env={**os.environ, **own})
    except CellExecutionError as error:
        lines = (line for cell in notebook.cells for text in texts(cell) for line in TERMINAL.sub("", text).splitlines())
        said = [line for line in lines if line.startswith("raylora: ")]
        raise RunError(f"{path.name}: {'; '.join([*said, f'{error.ename}: {error.evalue}'])}") from error
    return stripped(notebook)


def stripped(notebook: NotebookNode) -> NotebookNode:
    """Without what differs between two runs or machines and says nothing."""
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = NotebookNode()
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output.metadata = NotebookNode()
            if "text" in output:
                output.text = TERMINAL.sub("", output.text)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    return notebook


def texts(cell: NotebookNode) -> Iterator[str]:
    """Everything readable that a cell has put out; pictures are not."""
    for output in cell.get("outputs", ()):
        yield from (str(output[key]) for key in ("text", "evalue") if key in output)
        yield from output.get("traceback", ())
        yield from (str(value) for kind, value in output.get("data", {}).items() if not kind.startswith("image/"))


def faults(notebook: NotebookNode) -> list[str]:
    """What a stored notebook must not hold, in words; nothing if all is well."""
    found = []
    for number, cell in enumerate(notebook.cells):
        where = f"cell {number}"
        if cell.cell_type == "code" and cell.execution_count is None:
            found.append(f"{where}: was not executed")
        if any(output.output_type == "error" for output in cell.get("outputs", ())):
            found.append(f"{where}: ended with an error")
        for what, pattern in UNWANTED.items():
            hits = (pattern.search(text) for text in (str(cell.source), *texts(cell)))
            found += [f"{where}: {what}: {hit[0]}" for hit in hits if hit]
    return found


def main(names: Iterable[str] | None = None) -> None:
    """Execute the notebooks (all, or those named) and write back those that end well."""
    for path in notebooks(list(sys.argv[1:] if names is None else names)):
        with tempfile.TemporaryDirectory(prefix="raylora-notebooks-") as folder:
            notebook = execute(path, Path(folder))
        if wrong := faults(notebook):
            raise RunError(f"{path.name}: {'; '.join(wrong)}")
        with replacing(path) as partial:
            nbformat.write(notebook, partial)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(guarded(main))
