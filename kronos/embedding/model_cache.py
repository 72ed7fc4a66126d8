"""One copy of each model per process: all users of a model on one device share it.

Only its users keep a model alive. It is freed with the last of them, at once, without waiting for
Python's cycle collector. Models are told apart by the contents of their files, so a folder whose
files changed is another model.
"""

from __future__ import annotations

import importlib
import logging
import traceback
import weakref
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from kronos.concurrency.forking import Lock

logger = logging.getLogger(__name__)

T = TypeVar("T")

_alive: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()
_locks: weakref.WeakValueDictionary[Hashable, Lock] = weakref.WeakValueDictionary()
_finding_lock = Lock()


def lock_of(key: Hashable) -> Lock:
    """The lock of a key: while one thread loads, others wait, and then find what it loaded."""
    with _finding_lock:
        lock = _locks.get(key)
        if lock is None:
            lock = _locks[key] = Lock()
        return lock


def get_shared(key: Hashable, load: Callable[[], T]) -> T:
    """The object that this process holds under a key, loaded if there is none.

    Args:
        key: equal for interchangeable objects; None: never share.
        load: creates the object. An error that it raises is not remembered.
    """
    if key is None:
        return load()
    with lock_of(key):
        found: T | None = _alive.get(key)
        if found is None:
            found = _alive[key] = load()
        return found


def import_in_thread(module: str, name: str) -> Any:
    """Import a name from a module, on a thread of its own.

    Some libraries keep errors of their import. Such an error keeps the importing frames alive, and
    with them any model that is loaded there next.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="kronos-import") as thread:
        return thread.submit(lambda: getattr(importlib.import_module(module), name)).result()


def free_with_owner(owner: object, models: Iterable[Any]) -> None:
    """Free torch models as soon as their owner is gone.

    They are part of reference cycles, which would keep them until Python collects cycles.
    """
    weakref.finalize(owner, _take_apart, [*models]).atexit = False


def _take_apart(models: list[Any]) -> None:
    """Empty the modules of unused models, so that no cycle is left."""
    on_gpu = False
    for model in models:
        try:
            on_gpu |= str(model.device).startswith("cuda")
            for module in [*model.modules()]:
                vars(module).clear()
        except Exception:  # no torch model, or another version of torch: left to the collector
            logger.debug("a model was not taken apart: %s", traceback.format_exc())
    if on_gpu:
        _empty_gpu_cache()


def _empty_gpu_cache() -> None:
    import torch

    torch.cuda.empty_cache()
