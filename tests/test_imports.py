"""Who may import whom: the rows of the design, read from the source. Imports inside functions count too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_runs import settings

PACKAGE = Path(__file__).resolve().parent.parent / "raylora"
ROWS = [  # each may import what stands above it, and nothing beside it
    {"core"},
    {"schema"},
    {"config"},
    {"strategies", "data", "models", "metrics", "run_folder"},
    {"training", "tracking", "report"},
    {"federation"},
    {"cohort", "method", "dials"},
    {"plan"},
    {"planning", "provenance"},
    {"identity", "planner"},
    {"ending"},
    {"experiment", "foundation"},
    {"sweep"},
    {"stress"},
    {"cluster"},
    {"forecast", "export", "doctor"},
    {"launch"},
    {"launch_sweep", "launch_stress"},
    {"cli"},
    {"__main__"},
]
ROW = {part: number for number, parts in enumerate(ROWS) for part in parts}
OWNERS = {
    "ray": {"cluster", "launch"},
    "mlflow": {"tracking"},
    "torch": {"models", "training", "federation", "planning", "foundation", "forecast", "export", "doctor"},
    "nibabel": {"data"},
    "pyarrow": {"data", "tracking", "report"},
    "matplotlib": {"report"},
    "pandas": {"report"},
    "rich": {"report", "cli"},
    "typer": {"cli"},
    "pydantic": {"schema", "config", "sweep/space", "stress"},
    "sklearn": {"metrics"},
    "monai": {"models/monai_twin"},
    "peft": set(),  # actors must not import it: the tests hold our layer and our files to it
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full dotted names of what a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_part_has_a_row():
    assert {part_of(path) for path in FILES} - {"__init__"} == set(ROW)


@pytest.mark.parametrize("part", sorted(ROW))
def test_imports_go_down_the_rows_only(part):
    for path in FILES:
        if part_of(path) == part:
            for name in imported(path):
                other = name.split(".")[1] if name.startswith("raylora.") else part
                if other in ROW and other != part:
                    assert ROW[other] < ROW[part], f"{path} imports {name}"


def test_each_heavy_library_has_its_owners():
    for path in FILES:
        for name in imported(path):
            library, place = name.split(".")[0], str(path.relative_to(PACKAGE).with_suffix(""))
            assert library not in OWNERS or {part_of(path), place} & OWNERS[library], f"{path} imports {name}"


@pytest.mark.slow
def test_what_an_actor_and_the_command_line_load_is_light():
    """Seconds of import in every actor, or before `--help`, come back quietly: name the modules that must not be loaded."""
    heavy = {
        "raylora.cli": ("torch", "ray", "mlflow", "numpy", "pyarrow", "pydantic", "rich.console"),
        "raylora.strategies": ("torch", "ray", "scipy"),
        "raylora.federation.build": ("ray", "monai", "peft", "mlflow", "pandas", "matplotlib", "sklearn"),
        "raylora.experiment": ("torch", "ray", "nibabel", "mlflow", "pandas", "matplotlib"),  # a driver's
        "raylora.launch, raylora.cluster.driver": ("torch", "mlflow", "nibabel", "pandas", "matplotlib"),  # a command's
    }
    for module, forbidden in heavy.items():
        code = f"import {module}, sys; print(*[name for name in {forbidden!r} if name in sys.modules])"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert not found, f"{module} loads {found}"


@pytest.mark.slow
def test_planning_loads_what_it_uses(prepared_folder, tmp_path):
    """Command, driver and every trial plan: what they do not compute with must not be loaded, torch's compiler above all."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings(prepared_folder)))
    forbidden = ("torch._dynamo", "sympy", "scipy", "nibabel", "pandas", "matplotlib", "sklearn", "mlflow", "ray", "peft", "monai")
    code = "import sys; from pathlib import Path; from raylora import config, planning; planning.make_plan(config.load(Path('c.yaml')));"
    code += f"print(*[name for name in {forbidden!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()
    assert not found, f"planning loads {found}"
