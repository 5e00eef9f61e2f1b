"""Fixtures that every part of the tests shares."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference values and real studies, or a skip: they are not part of the project."""
    folder = Path(os.environ.get("RAYLORA_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared folder at {folder} (set RAYLORA_SHARED)")
    return folder
