"""Planning in a process that ends with it: a command that is to run for hours does not hold torch, a quarter of a gigabyte, for seconds of use."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from raylora.config import Config
from raylora.core.errors import InputError, MachineError, RunError, named
from raylora.core.loading import uncollected

if TYPE_CHECKING:
    from raylora.plan import Plan

Say = Callable[[str, int, int], None]
CLEANING_S = 15.0  # for a process that is to end; a busy machine needs more than five to remove phantoms that are half made


class Planner:
    """`planning.plan_to_run` in a process that loads torch from now on: `ask` sets it to work, `result` waits for it. Where torch is
    loaded already, it is done here.

    What goes between the two processes are pickles of our own making, over pipes that nobody else has.
    """

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.process = None
        if "torch" not in sys.modules:
            # -P: what lies in the user's folder hides no installed module; with our own path, where the user's modules are, last.
            command, paths = [sys.executable, "-P", "-m", "raylora.planner"], os.pathsep.join(sys.path)
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # it would be a traceback until `main` has been reached
            try:
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
                self.process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, **pipes)  # type: ignore[call-overload]
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def ask(self, config: Config, say: Say) -> None:
        """Raises InputError and RunError as `plan_to_run` does, if it is done here."""
        if self.process is None:
            from raylora.planning import plan_to_run

            self.plan = plan_to_run(config, say)
            return
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `result` says that it was lost
            pickle.dump(config, self.process.stdin)
            self.process.stdin.flush()  # it stays open as long as this process lives

    def result(self, say: Say) -> Plan:
        """Raises InputError, RunError and OSError as `plan_to_run` does; what else it raises as RunError."""
        if self.process is None:
            assert self.plan is not None
            return self.plan
        try:
            return self._answer(say)  # type: ignore[no-any-return]
        finally:
            self.close()

    def _answer(self, say: Say) -> Any:
        assert self.process is not None and self.process.stdout is not None
        try:
            while True:
                kind, value = pickle.load(self.process.stdout)
                if kind == "done":
                    return value
                if kind == "error":
                    raise value
                say(*value)
        except (EOFError, pickle.UnpicklingError):
            raise MachineError(f"the process that plans was lost (exit code {self.process.wait()})") from None

    def close(self) -> None:
        """Not to be waited for any longer; what it has half made is gone with it."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.communicate(timeout=CLEANING_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.communicate()


def main() -> None:
    """The other side."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this ends it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, _ended)
    answers, questions = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)  # what anything prints is no answer
    with uncollected():
        from raylora.planning import plan_to_run  # with torch

    def tell(kind: str, value: Any) -> None:
        pickle.dump((kind, value), answers, protocol=5)
        answers.flush()

    try:
        config = pickle.load(questions)
        threading.Thread(target=_end_with, args=(questions,), daemon=True).start()
        tell("done", plan_to_run(config, lambda *progress: tell("progress", progress)))
    except EOFError:  # whoever asked has ended
        os._exit(1)
    except (InputError, RunError, OSError) as error:
        tell("error", error)
    except Exception as error:  # of a user's module, perhaps of a class that nobody else knows
        tell("error", RunError(named(error)))
    os._exit(0)  # at the end of an interpreter the thread would still hold standard input


def _end_with(questions: IO[bytes]) -> None:
    """End as soon as the process that asked has ended."""
    os.read(questions.fileno(), 1)  # the file object's lock would be missed by an interpreter that ends
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(CLEANING_S)
    os._exit(1)


def _ended(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # said twice, it must not end what the first has begun
    raise SystemExit(1)


if __name__ == "__main__":
    main()
