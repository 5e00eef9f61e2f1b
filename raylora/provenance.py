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
    """The commit of the code in a folder, with "+" if the tree has changes; None where no checkout has it (one may lie around the
    environment that it is installed in)."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None
