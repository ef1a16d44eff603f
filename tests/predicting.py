"""The script of bright.py, a run of it, and tools/predict.py."""

import json

import pytest
from bright import SCRIPT, save_run

from tools import predict


@pytest.fixture(scope="session")
def bright(tmp_path_factory):
    """The script MTL_bright, somewhere outside the repository."""
    path = tmp_path_factory.mktemp("script") / "MTL_bright.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope="session")
def model(bright, tmp_path_factory):
    return save_run(bright, tmp_path_factory.mktemp("model"))


@pytest.fixture
def call(model, tmp_path, capsys):
    """A function that runs the tool: (lines of JSON, stderr)."""

    def run(*arguments, code=0, model=model, out=tmp_path / "out"):
        assert predict.main([str(model), *map(str, arguments), "--out", str(out)]) == code
        printed = capsys.readouterr()
        return [json.loads(line) for line in printed.out.splitlines()], printed.err

    return run
