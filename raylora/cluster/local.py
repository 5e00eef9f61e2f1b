"""A Ray of our own on one machine, without what nobody looks at."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import ray
from ray._private import services
from ray._private.node import Node

# glibc would give every large tensor's pages back and fault them in again at the next step: a tenth of a training step on a CPU
KEEP_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34), "MALLOC_TOP_PAD_": str(1 << 26)}
# there is no dashboard to show them: every process would keep more task events round by round, and spend 0.2 MB on its first metrics (a day off)
NOBODY_LOOKS = {"RAY_task_events_report_interval_ms": "0", "RAY_metrics_report_interval_ms": str(24 * 3600 * 1000)}
ENVIRONMENT = KEEP_PAGES | NOBODY_LOOKS
# the autoscaler's monitor (there is nothing to scale), the log monitor (logs stay in their files) and the dashboard's server, which runs even
# without a dashboard
SPARED = ("start_monitor", "start_log_monitor", "start_api_server")
KNOWN = "2.60.0"  # the Ray whose agents `stand_in` replaces; any other starts its own
COMMAND = "_build_python_executable_command_memory_profileable"  # of ray._private.services
STAND_IN = Path(__file__).with_name("stand_in.py")


@contextlib.contextmanager
def spared(*, environments: bool = False) -> Iterator[None]:
    """While this is open `ray.init` starts a head without those processes, and with stand-ins for its agents.

    It has no option for either. They are most of its seconds and of its CPU time, and 290 MB (PSS). A Ray that names them otherwise starts them.
    `environments`: whoever makes runtime environments is started; a raylet that is asked for one and finds nobody ends.
    """
    with contextlib.ExitStack() as patches:
        for name in SPARED:
            if hasattr(Node, name):
                patches.enter_context(mock.patch.object(Node, name, lambda self, **options: None))
        if ray.__version__ == KNOWN:
            patches.enter_context(mock.patch.object(services, COMMAND, _stood_in(getattr(services, COMMAND), _agents(environments))))
        yield


def _agents(environments: bool) -> set[str]:
    """Those that can be done without. Ray may also be told of a runtime environment from outside: in a job, by a hook, or under `uv run`."""
    from ray._private import ray_constants
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
    from ray._private.runtime_env.uv_runtime_env_hook import _get_uv_run_cmdline

    asked = environments or {RAY_JOB_CONFIG_JSON_ENV_VAR, ray_constants.RAY_RUNTIME_ENV_HOOK} & os.environ.keys() or _get_uv_run_cmdline()
    return {ray_constants.PROCESS_TYPE_DASHBOARD_AGENT} | (set() if asked else {ray_constants.PROCESS_TYPE_RUNTIME_ENV_AGENT})


def _stood_in(build: Callable[..., list[str]], agents: set[str]) -> Callable[..., list[str]]:
    """How a component's command begins, with a stand-in where it is one of these agents."""

    def command(component: str, *arguments: object, **options: object) -> list[str]:
        return [sys.executable, "-I", "-S", str(STAND_IN)] if component in agents else build(component, *arguments, **options)

    return command
