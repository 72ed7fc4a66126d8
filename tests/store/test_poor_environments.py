"""What a process lacks that Kronos does not need costs nothing but that thing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# No home folder: no variable names one, and the system knows no user of this number.
NO_HOME = """
import os, pwd
os.environ.pop("HOME", None)
def nobody(*_):
    raise KeyError("no such user")
pwd.getpwuid = pwd.getpwnam = nobody
"""
NO_WORKING_DIRECTORY = """
import os, tempfile
folder = tempfile.mkdtemp()
os.chdir(folder)
os.rmdir(folder)
"""
NO_STREAMS = """
import sys
sys.stdin = sys.stdout = sys.stderr = None
"""
# {file} is a file: nothing can be read or made below it, not even by root.
LACKING: dict[str, tuple[str, dict[str, str | None]]] = {
    "nothing": ("", {}),
    "home": (NO_HOME, {"XDG_CACHE_HOME": None, "HF_HOME": None}),
    "a home that is a folder": ("", {"HOME": "{file}", "XDG_CACHE_HOME": None}),
    "a cache": ("", {"XDG_CACHE_HOME": "{file}/cache"}),
    "a cache of models": ("", {"HF_HOME": "{file}/hf", "HF_HUB_CACHE": "{file}/hub"}),
    "SENTENCE_TRANSFORMERS_HOME": ("", {"SENTENCE_TRANSFORMERS_HOME": "{file}/st"}),
    "TRANSFORMERS_CACHE": ("", {"TRANSFORMERS_CACHE": "{file}/tc"}),
    "a locale and a user": ("", {"LANG": None, "LC_ALL": "C", "USER": None, "LOGNAME": None}),
    "a working directory": (NO_WORKING_DIRECTORY, {}),
    "streams": (NO_STREAMS, {}),
}
TRY = """
import asyncio, warnings
warnings.simplefilter("error")
from kronos import KronosMemory, MemoryStore
model, path, way = {model!r}, {path!r}, {way!r}
if way == "sync":
    with MemoryStore.open(path, embedding_model=model) as store:
        store.add("the kettle sings", id="k")
        assert store.search("kettle")[0].id == "k"
        assert store.maintenance.check().ok
elif way == "async":
    async def main():
        async with KronosMemory(path, embedding_model=model) as memory:
            await memory.add("the kettle sings", id="k")
            assert (await memory.search("kettle"))[0].id == "k"
    asyncio.run(main())
else:
    import sys
    from kronos.cli import main
    for words in (["add", "the kettle sings", "--model", model], ["search", "kettle"], ["info"]):
        sys.argv = ["kronos", *words, "--store", path]
        try:
            main()
        except SystemExit as exc:
            assert not exc.code, exc.code
"""


@pytest.mark.parametrize(
    ("way", "model"), [("sync", "mini"), ("async", "hash"), ("command", "hash")]
)
@pytest.mark.parametrize("lacking", LACKING)
def test_what_kronos_does_not_need_may_be_lacking(
    tmp_path: Path, lacking: str, way: str, model: str
) -> None:
    script, variables = LACKING[lacking]
    file = tmp_path / "file"
    file.touch()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    for name, value in variables.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value.format(file=file)
    tried = TRY.format(model=model, path=str(tmp_path / "store"), way=way)
    done = subprocess.run(
        [sys.executable, "-c", script + tried],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
