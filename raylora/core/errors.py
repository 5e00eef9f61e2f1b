"""The errors a user can meet. Everything else is a bug."""


class InputError(Exception):
    """Bad input (config, data, weights, paths): one line that names the file or key, what was expected and what was found. Exit code 2."""


class RunError(Exception):
    """The run started and failed (a client failed for good, a loss became non-finite): one line that names round and client. Exit code 1."""


class Interrupted(Exception):
    """The user, or a scheduler, ended it: one line on what is left and how to go on. Exit code 130."""


class MachineError(RunError):
    """The machine failed, not the experiment (a full disk, a lost driver, a client that does not answer): to resume the run goes on."""


def one_line(error: BaseException) -> str:
    """What an error says, on one line of at most 400 characters."""
    return " ".join(str(error).split())[:400]


def named(error: BaseException) -> str:
    """The same behind the error's own name: for errors that are not ours."""
    return f"{type(error).__name__}: {one_line(error)}"
