"""Every command of the README and the pages in docs/ is one that exists, with options and keys that exist; every file they point at is there."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer

from raylora import cli
from raylora import config as configuration

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(cli.app).commands


def commands(page: Path) -> list[str]:
    """What stands in a code block or between backquotes and begins like a command, without comments."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    lines = [line for block in blocks for line in block.splitlines()] + inline
    return [
        line.split("  #")[0].strip() for line in lines if re.match(r"(raylora|make|python -m benchmarks\S*) \S|python -m benchmarks", line)
    ]


EVERY = [(page.name, command) for page in PAGES for command in commands(page)]


def test_the_readme_has_commands():
    said = [command for page, command in EVERY if page == "README.md"]
    assert {"make demo", "make test"} <= set(said) and sum(command.startswith("raylora run ") for command in said) >= 3


@pytest.mark.parametrize(("page", "command"), EVERY, ids=[f"{page}: {command[:60]}" for page, command in EVERY])
def test_a_command_can_be_typed(page, command):
    program, *words = shlex.split(command)
    if program == "make":
        assert re.search(rf"^([\w-]+ )*{words[0]}( [\w-]+)*:", (ROOT / "Makefile").read_text(), re.M), command
        return
    if program == "python":
        assert importlib.util.find_spec(words[1]) is not None, command
        return
    found = COMMANDS[words[0]]
    rest = words[1:]
    if hasattr(found, "commands"):
        found, rest = found.commands[rest[0]], rest[1:]
    options = {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in rest if word.startswith("--") and word.split("=")[0] not in options]
    assert not unknown, f"{command}: {unknown}"
    if words[0] in ("run", "pretrain") and rest:
        load = configuration.load if words[0] == "run" else configuration.load_pretrain
        load(ROOT / rest[0], [word for word in rest[1:] if "=" in word and not word.startswith("-")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert not missing
