"""What computed the numbers: versions of everything installed, the code's own hash and commit."""

from __future__ import annotations

import functools
import hashlib
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from raylora import __version__


@functools.cache
def _installed() -> Mapping[str, str]:
    found = {"raylora": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for package in ("torch", "numpy", "ray", "peft", "monai", "mlflow", "pyarrow", "nibabel"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def versions() -> dict[str, str]:
    """Of what computed the numbers."""
    return dict(_installed())


@functools.cache
def environment() -> str:
    """Every installed distribution with its version, one a line, as `pip freeze` lists them."""
    found = {(each.metadata["Name"] or "").lower(): each.version for each in metadata.distributions()}
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()) if name)


def code() -> dict[str, str | None]:
    """The hash of the package's own files, and the commit they are of."""
    return {"sha256": code_sha256(), "commit": git_commit(Path(__file__).parent)}


@functools.cache
def code_sha256() -> str:
    """Of the package's own Python files, by name and content."""
    root = Path(__file__).parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


@functools.cache
def git_commit(folder: Path) -> str | None:
    """The commit of the code that runs, with "+" if the tree has changes; None outside a checkout."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if dirty else "")
