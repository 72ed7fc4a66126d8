"""Concurrent questions share a batch: who comes while others are embedded goes with the next ones.

Nobody waits for anybody to come: a lone call is embedded at once. A text that fails costs the
others nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kronos.forking import Lock

if TYPE_CHECKING:
    from kronos.types import Vectors

MOST_TEXTS = 256
"""So many texts go together at most."""


@dataclass(slots=True, eq=False)
class _Call:
    texts: Sequence[str]
    rows: Vectors | None = None
    error: Exception | None = None

    @property
    def is_done(self) -> bool:
        return self.rows is not None or self.error is not None


class Combiner:
    """Lets calls from many threads share what embeds.

    Args:
        embed: texts to (n, dim) float32; called by one thread at a time.
    """

    def __init__(self, embed: Callable[[Sequence[str]], Vectors]) -> None:
        self._embed = embed
        self._queue: deque[_Call] = deque()
        self._embedding = Lock()

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Embed texts: (n, dim) float32. Raises what `embed` raises for these texts."""
        call = _Call(texts)
        self._queue.append(call)
        with self._embedding:
            # Whoever had the lock before may have done it. In a forked child the queue may hold
            # calls of threads that are not there: theirs are embedded, and nobody asks.
            while not call.is_done:
                self._work_off(self._take())
        if call.error is not None:
            raise call.error
        assert call.rows is not None
        return call.rows

    def _take(self) -> list[_Call]:
        taken = [self._queue.popleft()]
        count = len(taken[0].texts)
        while self._queue and count + len(self._queue[0].texts) <= MOST_TEXTS:
            taken.append(self._queue.popleft())
            count += len(taken[-1].texts)
        return taken

    def _work_off(self, calls: list[_Call]) -> None:
        try:
            rows = self._embed([text for call in calls for text in call.texts])
        except Exception as exc:
            if len(calls) == 1:
                calls[0].error = exc
            for call in calls if len(calls) > 1 else ():
                self._work_off([call])
            return
        start = 0
        for call in calls:
            call.rows = rows[start : start + len(call.texts)]
            start += len(call.texts)
