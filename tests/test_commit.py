"""The commit that a history records is that of this code, or none."""

import shutil
import subprocess

import pytest

from parts import provenance

ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_COUNT": "2",
    **{"GIT_CONFIG_KEY_0": "user.name", "GIT_CONFIG_VALUE_0": "tester"},
    **{"GIT_CONFIG_KEY_1": "user.email", "GIT_CONFIG_VALUE_1": "tester@example.org"},
}

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="no git here")


@pytest.fixture
def git(monkeypatch):
    """A function that calls git in a folder and returns what it prints."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    def call(folder, *arguments):
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    return call


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A repository's folder without git, as after unpacking a zip in a folder of the user's."""
    root = tmp_path / "theirs" / "ours"
    (root / "engine").mkdir(parents=True)
    (root / "engine" / "provenance.py").write_text("1")
    monkeypatch.setattr(provenance, "__file__", str(root / "engine" / "provenance.py"))
    return root


def commit_all(git, folder):
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "all")
    return git(folder, "rev-parse", "HEAD")


def test_the_commit_and_whether_the_code_has_changed_since(git, code, monkeypatch):
    assert provenance.commit() is None
    number = commit_all(git, code)
    assert provenance.commit() == number and len(number) == 40
    (code / "new.txt").touch()
    assert provenance.commit() == number  # a file that git does not know is not code
    (code / "engine" / "provenance.py").write_text("2")
    assert provenance.commit() == f"{number}+"
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() is None


def test_a_work_tree_of_git_counts(git, code, tmp_path, monkeypatch):
    number = commit_all(git, code)
    git(code, "worktree", "add", "-q", str(tmp_path / "tree"))
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "tree" / "engine" / "provenance.py"))
    assert provenance.commit() == number


def test_another_repository_does_not_count(git, code, tmp_path, monkeypatch):
    """One around the folder, or one that the environment names."""
    theirs = commit_all(git, code.parent)
    assert git(code, "rev-parse", "HEAD") == theirs
    assert provenance.commit() is None
    monkeypatch.setenv("GIT_DIR", str(code.parent / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(code.parent))
    assert provenance.commit() is None
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.delenv("GIT_WORK_TREE")
    ours = commit_all(git, code)
    monkeypatch.setenv("GIT_DIR", str(code.parent / ".git"))
    assert provenance.commit() == ours != theirs
