"""Worker processes: what a terminal tells everybody is not for them."""

import os
import signal
import subprocess
import sys
import time

import psutil

from benchmarks.processes import children, title
from raylora.data.pool import Workers


def test_ctrl_c_and_a_closed_terminal_are_for_whoever_asked(capfd):
    """Told twice: while they are starting, and when they are idle."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with Workers(2) as pool:
        first = [pool.submit(abs, -number) for number in range(4)]
        until, workers = time.monotonic() + 120, []
        while len(workers) < 2 and time.monotonic() < until:  # a moment after its fork a child still has the name of this process
            workers = [pid for pid in children(os.getpid()) if "spawn_main" in title(pid)]
        assert len(workers) == 2
        for again in range(2):
            for pid in workers:
                os.kill(pid, signal.SIGINT)
                os.kill(pid, signal.SIGHUP)
            assert [future.result(60) for future in first] == [0, 1, 2, 3] and pool.submit(os.getpid).result(60) in workers, again
    assert "Traceback" not in capfd.readouterr().err and not any(map(psutil.pid_exists, workers))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before, "this process hears them as before"


def test_a_script_that_every_worker_would_run_again_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from raylora.data.pool import process_map\nprint(sorted(process_map(2)(abs, [-1, 2])))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and 'or started by a script without `if __name__ == "__main__":`' in done.stderr
    script.write_text(script.read_text().replace("print", 'if __name__ == "__main__":\n    print'))
    assert subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True).stdout == "[1, 2]\n"
