"""`raylora` in a process of its own, forked from one that has imported everything, and struck by a signal when it has said something."""

import fcntl
import json
import multiprocessing
import os
import pty
import select
import signal
import sys
import termios
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["raylora.cli", "raylora.launch", "raylora.experiment", "raylora.cluster.driver", "raylora.report.html"])
HANG_UP = -1  # not a signal that is sent: the terminal is closed, and the kernel tells everyone on it


def command(words: Sequence[str], folder: Path, text: str, strike: int) -> None:
    """The process: a session of its own (with a terminal, for HANG_UP), `folder` as its working folder."""
    from raylora import cli
    from raylora.report import live

    os.setsid()
    os.chdir(folder)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored in a suite that was started with nohup
    os.environ["RAYLORA_CACHE"] = str(folder / "cache")
    out = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    closing = threading.Event()
    if strike == HANG_UP:
        master, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        os.dup2(terminal, 2)
        os.close(terminal)
        threading.Thread(target=watched, args=(master, closing), daemon=True).start()
    shown = live.Live.__call__

    def show(self: live.Live, event: dict) -> None:
        shown(self, event)
        if strike and text in f"{event.get('text', event['event'])} {event.get('round', '')}":
            family = [process.pid for process in psutil.Process().children(recursive=True)]
            (folder / "family").write_text(json.dumps([os.getpid(), *family]))
            if strike == HANG_UP:
                closing.set()
            elif strike == signal.SIGINT:  # Ctrl-C reaches everything that was started from the terminal
                os.killpg(0, strike)
            else:
                os.kill(os.getpid(), strike)
            time.sleep(60)  # until the handler ends it

    live.Live.__call__ = show  # type: ignore[method-assign]
    code = cli.guarded(lambda: cli.app(list(words), standalone_mode=False))
    sys.stdout.flush()
    os._exit(code)


def watched(master: int, closing: threading.Event) -> None:
    """A terminal's window: takes what is written until it is closed."""
    while not closing.is_set():
        if select.select([master], [], [], 0.02)[0]:
            os.read(master, 1 << 16)
    os.close(master)


class Struck:
    """`raylora WORDS` in `folder`, struck as soon as it has said `text`."""

    def __init__(self, words: Sequence[str], folder: Path, text: str = "", strike: int = 0) -> None:
        self.folder, self.strike = folder, strike
        self.process = FORKS.Process(target=command, args=(list(words), folder, text, int(strike)))
        self.process.start()

    def end(self, expected: int) -> str:
        """What it said. It ended with this code, and nothing that it started is left.

        (After SIGKILL Ray's two agents try for a minute to tell the dead about it; they hold nothing.)
        """
        self.process.join(800)
        code, said = self.process.exitcode, (self.folder / "said").read_text()
        assert code == expected and "Traceback" not in said, (code, said)
        family = json.loads((self.folder / "family").read_text()) if self.strike else []
        deadline = time.monotonic() + 60
        while left := [name for pid in family if (name := alive(pid)) and not (code == -signal.SIGKILL and "Agent" in name)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
        return said

    def kill(self) -> None:
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def alive(pid: int) -> str:
    """The name of a process, empty if it has ended."""
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else " ".join(process.cmdline()).strip() or process.name()
    except psutil.NoSuchProcess:
        return ""
