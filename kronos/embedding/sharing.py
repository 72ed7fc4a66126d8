"""One copy of a model in a process: whoever asks for the same one on the same device shares it.

Only those who use a model hold it. It is given back with the last of them, at once and without
Python's collector of cycles. What is the same is told by the contents of the files, so a folder
whose files have changed is another model.
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
_turns: weakref.WeakValueDictionary[Hashable, Lock] = weakref.WeakValueDictionary()
_looking = Lock()


def turn(key: Hashable) -> Lock:
    """A lock that all who name the same key take; what one of them loads, the next one finds."""
    with _looking:
        lock = _turns.get(key)
        if lock is None:
            lock = _turns[key] = Lock()
        return lock


def shared(key: Hashable, load: Callable[[], T]) -> T:
    """What somebody in this process has under a key, or else what is loaded now.

    Args:
        key: equal for what is interchangeable; None: nothing is.
        load: makes it. What it raises is remembered by nobody.
    """
    if key is None:
        return load()
    with turn(key):
        found: T | None = _alive.get(key)
        if found is None:
            found = _alive[key] = load()
        return found


def imported(module: str, name: str) -> Any:
    """Import something of a library, on a thread of its own.

    Exceptions that a library keeps from its import keep the frames of whoever imports it, and with
    them the model that is loaded there next.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="kronos-import") as thread:
        return thread.submit(lambda: getattr(importlib.import_module(module), name)).result()


def forget_frames(exc: BaseException | None) -> None:
    """Let an exception that was dealt with know no longer where it was raised.

    A frame that keeps its exception is part of a cycle, which keeps the models of all frames above.
    """
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        exc.__traceback__ = None
        exc = exc.__cause__ or exc.__context__


def give_back_with(owner: object, models: Iterable[Any]) -> None:
    """Free torch's models once their owner is gone.

    They are part of cycles, which would keep them until Python looks for such.
    """
    weakref.finalize(owner, _take_apart, [*models]).atexit = False


def _take_apart(models: list[Any]) -> None:
    """Empty the modules of models that nobody uses any more, so that no cycle is left."""
    on_gpu = False
    for model in models:
        try:
            on_gpu |= str(model.device).startswith("cuda")
            for module in [*model.modules()]:
                vars(module).clear()
        except Exception:  # no model of torch, or another version of it: the collector finds it
            logger.debug("a model was not taken apart: %s", traceback.format_exc())
    if on_gpu:
        _empty_gpu_cache()


def _empty_gpu_cache() -> None:
    import torch

    torch.cuda.empty_cache()
