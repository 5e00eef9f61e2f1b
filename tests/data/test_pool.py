"""Worker processes: what a terminal tells everybody is not for them."""

import os
import signal

import psutil

from raylora.data.pool import Workers


def test_ctrl_c_and_a_closed_terminal_are_for_whoever_asked(capfd):
    """Told twice: while they are starting, and when they are idle."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with Workers(2) as pool:
        first = [pool.submit(abs, -number) for number in range(4)]
        workers = [child.pid for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
        assert len(workers) == 2
        for again in range(2):
            for pid in workers:
                os.kill(pid, signal.SIGINT)
                os.kill(pid, signal.SIGHUP)
            assert [future.result(60) for future in first] == [0, 1, 2, 3] and pool.submit(os.getpid).result(60) in workers, again
    assert "Traceback" not in capfd.readouterr().err and not any(map(psutil.pid_exists, workers))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before, "this process hears them as before"
