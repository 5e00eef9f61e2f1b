"""Planning in a process that ends with it: a command that is to run for hours does not hold torch, a quarter of a gigabyte, for seconds of use."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from raylora.config import Config
from raylora.core.errors import InputError, MachineError, RunError
from raylora.core.loading import uncollected

if TYPE_CHECKING:
    from raylora.planned import Plan

Say = Callable[[str, int, int], None]


class Planner:
    """`planning.make_plan` in a process that loads torch from now on: `ask` sets it to work, `result` waits for it. Where torch is loaded
    already, `ask` makes the plan itself.

    What goes between the two processes are pickles of our own making, over pipes that nobody else has.
    """

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.process = None
        if "torch" not in sys.modules:
            command, paths = (
                [sys.executable, "-m", "raylora.plan_apart"],
                os.pathsep.join(sys.path),
            )  # with it: where the user's modules are
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths})

    def ask(self, config: Config, say: Say) -> None:
        """Raises InputError and RunError as `make_plan` does, if it is done here."""
        if self.process is None:
            from raylora.planning import make_plan

            self.plan = make_plan(config, say)
            return
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `result` says that it was lost
            pickle.dump(config, self.process.stdin)
            self.process.stdin.flush()  # it stays open as long as this process lives

    def result(self, say: Say) -> Plan:
        """Raises InputError, RunError and OSError as `make_plan` does; what else it raises as RunError."""
        if self.process is None:
            assert self.plan is not None
            return self.plan
        assert self.process.stdout is not None
        try:
            while True:
                kind, value = pickle.load(self.process.stdout)
                if kind == "plan":
                    return value  # type: ignore[no-any-return]
                if kind == "error":
                    raise value
                say(*value)
        except (EOFError, pickle.UnpicklingError):
            raise MachineError(f"the process that plans was lost (exit code {self.process.wait()})") from None
        finally:
            self.close()

    def close(self) -> None:
        """Not to be waited for any longer."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()


def main() -> None:
    """The other side."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this ends it
    answers, questions = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)  # what anything prints is no answer
    with uncollected():
        from raylora.planning import make_plan  # with torch
    config = pickle.load(questions)
    threading.Thread(target=_end_with, args=(questions,), daemon=True).start()

    def tell(kind: str, value: Any) -> None:
        pickle.dump((kind, value), answers, protocol=5)
        answers.flush()

    try:
        tell("plan", make_plan(config, lambda *progress: tell("progress", progress)))
    except (InputError, RunError, OSError) as error:
        tell("error", error)
    except Exception as error:  # of a user's module, perhaps of a class that nobody else knows
        tell("error", RunError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
    os._exit(0)  # at the end of an interpreter the thread would still hold standard input


def _end_with(questions: IO[bytes]) -> None:
    """End as soon as the process that asked has ended."""
    questions.read()
    os._exit(1)


if __name__ == "__main__":
    main()
