"""The commit that a record names is that of the code that ran."""

import subprocess

from raylora.provenance import git_commit


def test_a_commit_is_that_of_a_checkout_that_has_the_code(tmp_path):
    def git(*words):
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *author, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    installed, package = tmp_path / ".venv" / "raylora", tmp_path / "raylora"
    for folder in (installed, package):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
    assert git_commit(package) is None
    git("init")
    git("add", "raylora")
    git("commit", "-m", "a study of my own")
    head = git("rev-parse", "HEAD")
    assert git_commit(installed) is None, "the environment lies in somebody's checkout, which says nothing of the code"
    git_commit.cache_clear()
    assert git_commit(package) == f"{head}+", "a folder that git does not know lies there"
    (tmp_path / ".gitignore").write_text(".venv\n.gitignore\n")
    git_commit.cache_clear()
    assert git_commit(package) == head
