"""What a test needs of the system and does not find: a skip with the reason, or a failure where the system's tests are required."""

import os
from typing import NoReturn

import pytest


def absent(reason: str) -> NoReturn:
    if os.environ.get("RAYLORA_REQUIRE_SYSTEM") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
