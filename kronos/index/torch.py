"""`TorchIndex`: exact, on a GPU through torch, where FAISS has no support for GPUs.

The rows on the host are the truth: they are changed, saved and handed out there, bit by bit. The
device has a copy, which the next search brings up to date: only what is new or was overwritten goes
over. When the device fails, as a rule because its memory is full, the host goes on with a warning,
and nothing is lost. torch is imported when there may be a GPU, and not before.
Not run on a GPU yet; torch's "cpu" stands in for one in its tests.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from kronos.concurrency.forking import follow_forks, never_free
from kronos.devices import gpu_numbers, may_have_accelerator
from kronos.errors import KronosWarning
from kronos.index.base import (
    KeyTable,
    check_keys,
    check_queries,
    check_rows,
    distinct,
    require_known,
    rows_from_bytes,
    rows_to_buffers,
)
from kronos.index.faiss import FaissIndex, settle_ties
from kronos.index.refining import HALF_ERROR, LONGEST_HALF, longest, refine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Keys, Vectors

_AT_ONCE = 2**26
"""So many numbers a search holds on the device beside the rows, at most: 256 MiB of float32."""
_QUERIES = 1024
"""So many questions are asked at once."""
_SLACK = 4
"""A buffer that is made anew has room for one more row in so many: so filling one copies each row a
few times, whatever the number of changes."""
_GATHER_BELOW = 2
"""When less than one row in so many may be found, they are gathered; else the others are masked."""
_WORN_FROM = 5
"""When more than one row in so many was removed, the others are put together."""


def torch_device(device: str) -> str | None:
    """The GPU that torch can use for a device that was asked for; None when there is none.

    Where no GPU can be, torch is not imported. Of several GPUs it is the first.

    Raises:
        ConfigurationError: the device has no meaning.
    """
    numbers = gpu_numbers(device)
    if numbers == [] or not may_have_accelerator():
        return None
    try:
        import torch

        number = numbers[0] if numbers else 0
        present = torch.cuda.is_available() and number < torch.cuda.device_count()
    except Exception:  # no torch, or a driver that fails: then there is none to use
        return None
    return f"cuda:{number}" if present else None


class TorchIndex:
    """A `VectorIndex` on a torch device. Not thread-safe; its owner locks.

    Args:
        dim: the width of a vector.
        device: torch's name of the device.
        half: keep float16 rows there, half as many bytes. They propose candidates, which the rows
            on the host score: the answer is the same.
    """

    kind = "torch-flat"

    def __init__(self, dim: int, *, device: str = "cuda", half: bool = False) -> None:
        self.dim = dim
        self._keys: Keys = np.empty(0, np.int64)
        """As `_rows` and `_alive`, an array with room for more; `_size` of each are in use."""
        self._rows: Vectors = np.empty((0, dim), np.float32)
        self._alive = np.empty(0, np.bool_)
        self._size = self._count = 0
        self._highest = -(2**63)
        """No key that has a row is above it."""
        self._table: KeyTable | None = None
        """Finds a key's row, also that of a removed key, which waits for it to come back."""
        self._copy = _DeviceRows(dim, device, half)

    @classmethod
    def from_bytes(
        cls, data: bytes | memoryview, dim: int, *, device: str = "cuda", half: bool = False
    ) -> TorchIndex:
        """Read what `to_buffers` wrote.

        Raises:
            SnapshotError: the bytes are no index, or one of another width.
        """
        index = cls(dim, device=device, half=half)
        index._append(*rows_from_bytes(data, dim))
        return index

    def __len__(self) -> int:
        return self._count

    def upsert(self, keys: Keys, vectors: Vectors) -> None:
        """Set the vectors of keys; see `VectorIndex.upsert`."""
        keys, vectors = check_rows(keys, vectors, self.dim)
        if keys.size and keys.min() <= self._highest:
            rows, known = self._find(keys)
            self._count += int(np.count_nonzero(~self._alive[rows]))
            self._rows[rows], self._alive[rows] = vectors[known], True
            self._copy.doubt(rows, vectors[known])
            keys, vectors = keys[~known], vectors[~known]
        self._append(keys, vectors)

    def remove(self, keys: Keys) -> int:
        """Forget keys; see `VectorIndex.remove`."""
        rows, _ = self._find_living(distinct(check_keys(keys)))
        self._alive[rows] = False
        self._count -= rows.size
        if (self._size - self._count) * _WORN_FROM > self._size:
            self._put_together()
        return rows.size

    def search(
        self, queries: Vectors, k: int, *, allowed: Keys | None = None
    ) -> tuple[Vectors, Keys]:
        """Find the k nearest keys of each query; see `VectorIndex.search`.

        Equal scores are ordered by key, lowest first; which of several with the score of the last
        place are returned is left open.
        """
        queries = check_queries(queries, k, self.dim)
        rows = None
        if allowed is not None:
            rows = self._find_living(distinct(check_keys(allowed)))[0]
        elif self._count < self._size:
            rows = np.flatnonzero(self._alive[: self._size])
        k = min(k, self._count if rows is None else rows.size)
        scores = np.empty((len(queries), k), np.float32)
        found = np.empty((len(queries), k), np.int64)
        if k:
            for start in range(0, len(queries), _QUERIES):
                part = slice(start, start + _QUERIES)
                scores[part], found[part] = self._search(queries[part], k, rows)
        return settle_ties(scores, self._keys.take(found))

    def _search(
        self, queries: Vectors, k: int, rows: NDArray[np.intp] | None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        held = self._rows[: self._size]
        try:
            return self._copy.search(queries, k, held, rows)
        except RuntimeError as exc:  # torch.OutOfMemoryError is one, and so is a GPU that is gone
            if not self._copy.is_on_device:
                raise
            self._copy.give_up()
            warnings.warn(
                f"the index of {len(self)} vectors goes on without the GPU: {exc}",
                KronosWarning,
                stacklevel=4,
            )
        return self._copy.search(queries, k, held, rows)

    def keys(self) -> Keys:
        """All keys, in ascending order: (n,) int64."""
        return np.sort(self._keys[self._living()])

    def held(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of some keys the index holds: (n,) bool."""
        return self._find_living(check_keys(keys))[1]

    def vectors_of(self, keys: Keys) -> Vectors:
        """The vectors of keys: (n, dim) float32.

        Raises:
            NotFoundError: a key is not held.
        """
        keys = check_keys(keys)
        rows, known = self._find_living(keys)
        require_known(keys, known)
        return self._rows.take(rows, axis=0)

    def to_buffers(self) -> list[memoryview]:
        """The index as bytes that `from_bytes` and `FaissIndex` read: raw arrays."""
        living = self._living()
        return rows_to_buffers(self._keys[living], self._rows[living])

    def on_cpu(self) -> FaissIndex:
        """The same keys and vectors without the device."""
        index, living = FaissIndex(self.dim), self._living()
        index.upsert(self._keys[living], self._rows[living])
        return index

    @property
    def is_on_device(self) -> bool:
        """Whether the device answers; False once it failed."""
        return self._copy.is_on_device

    def _append(self, keys: Keys, vectors: Vectors) -> None:
        if not keys.size:
            return
        start, self._size = self._size, self._size + keys.size
        if self._size > self._keys.size:
            self._make_room(max(self._size, 2 * start))
        new = slice(start, self._size)
        self._keys[new], self._rows[new], self._alive[new] = keys, vectors, True
        self._copy.doubt(np.empty(0, np.intp), vectors)
        self._count += keys.size
        self._highest = max(self._highest, int(keys.max()))
        if self._table is not None:
            self._table.append(keys)

    def _make_room(self, size: int) -> None:
        more = size - self._keys.size
        self._keys = np.concatenate([self._keys, np.empty(more, np.int64)])
        self._alive = np.concatenate([self._alive, np.zeros(more, np.bool_)])
        self._rows = np.concatenate([self._rows, np.empty((more, self.dim), np.float32)])

    def _put_together(self) -> None:
        """Forget the rows of removed keys."""
        living = self._living()
        self._keys, self._rows = self._keys[living], self._rows[living]
        self._alive = np.ones(living.size, np.bool_)
        self._size = living.size
        self._table = None
        self._copy.forget()

    def _living(self) -> NDArray[np.intp]:
        return np.flatnonzero(self._alive[: self._size])

    def _find(self, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The rows of those keys that have one, and (n,) which keys those are."""
        if self._table is None:
            self._table = KeyTable(self._keys[: self._size])
        return self._table.find(keys)

    def _find_living(self, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The same without the removed keys."""
        rows, known = self._find(keys)
        known[known] = alive = self._alive[rows]
        return rows[alive], known


class _DeviceRows:
    """A copy of the host's rows on a device; once that failed, the host's rows themselves."""

    def __init__(self, dim: int, device: str, half: bool) -> None:
        self.is_on_device = True
        self._dim = dim
        self._device = device
        self._half = half
        self._longest = 1.0
        """No row is longer."""
        self._buffer: Any = None
        self._size = 0
        """Rows that were copied."""
        self._stale: list[NDArray[np.intp]] = []
        """Those of them that were overwritten since."""
        follow_forks(self)

    def before_fork(self) -> None:
        """Nothing to do."""

    def after_fork(self, in_child: bool) -> None:
        """Leave the device to the parent: CUDA does not work in a child."""
        if in_child and self.is_on_device:
            never_free(self._buffer)
            self.give_up()

    def doubt(self, rows: NDArray[np.intp], vectors: Vectors) -> None:
        """Take note of rows that were overwritten, and of vectors that are to be copied."""
        if rows.size:
            self._stale.append(rows)
        self._longest = max(self._longest, longest(vectors))
        if self._half and self._longest > LONGEST_HALF:
            self._half = False
            self.forget()

    def forget(self) -> None:
        """Let go of the copy: the next search makes another."""
        self._buffer, self._size, self._stale = None, 0, []

    def give_up(self) -> None:
        """Search the host's rows from now on."""
        self.is_on_device, self._half, self._device = False, False, "cpu"
        self.forget()

    def search(
        self, queries: Vectors, k: int, held: Vectors, rows: NDArray[np.intp] | None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Find the k nearest of the rows, or of some.

        Args:
            queries: (n, dim) float32, n <= 1024.
            k: 1 to the number of rows that may be found.
            held: (m, dim) float32, the host's rows.
            rows: those that may be found; None: all.

        Returns:
            (n, k) scores and rows.

        Raises:
            RuntimeError: the device failed, e.g. its memory is full.
        """
        import torch

        def nearest(queries: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
            return self._nearest(torch, queries, k, rows)

        with torch.inference_mode():
            self._bring_up(torch, held)
            if not self._half and _multiplies_exactly(torch):
                return nearest(queries, k)
            most = len(held) if rows is None else rows.size
            error = HALF_ERROR * self._longest
            found = refine(nearest, queries, k, held, most=most, error=error)
        assert found is not None, "k rows may be found"
        return found

    def _bring_up(self, torch: Any, held: Vectors) -> None:
        """Copy what is new or was overwritten since the last time."""
        if not self.is_on_device:
            self._buffer = torch.from_numpy(held)
            return
        if self._buffer is None or len(held) > len(self._buffer):
            self.forget()  # before there is another one: the memory may not hold both
            dtype = torch.float16 if self._half else torch.float32
            room = (len(held) + len(held) // _SLACK, self._dim)
            self._buffer = torch.empty(room, dtype=dtype, device=self._device)
        step = max(_AT_ONCE // self._dim, 1)
        for start in range(self._size, len(held), step):
            part = torch.from_numpy(held[start : start + step])
            self._buffer[start : start + len(part)].copy_(part)
        for rows in self._stale:
            rows = rows[rows < self._size]  # the others were copied just now
            part = torch.from_numpy(held[rows]).to(self._device, self._buffer.dtype)
            self._buffer[torch.from_numpy(rows).to(self._device)] = part
        self._size, self._stale = len(held), []

    def _nearest(
        self, torch: Any, queries: Vectors, k: int, rows: NDArray[np.intp] | None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Compare the queries with all rows that may be found, so many at once as memory allows."""
        size = len(self._buffer) if not self.is_on_device else self._size
        asked = torch.tensor(queries).to(self._device, self._buffer.dtype)
        places = hidden = None
        if rows is not None and rows.size * _GATHER_BELOW < size:
            places, size = torch.from_numpy(rows).to(self._device), rows.size
        elif rows is not None:
            mask = np.ones(size, np.bool_)
            mask[rows] = False
            hidden = torch.from_numpy(mask).to(self._device)
        best: Any = None
        step = max(_AT_ONCE // max(len(queries), self._dim), 1)
        for start in range(0, size, step):
            part = slice(start, min(start + step, size))
            block = self._buffer[part] if places is None else self._buffer[places[part]]
            scores = asked @ block.T
            if hidden is not None:
                scores.masked_fill_(hidden[part], -torch.inf)
            scores, near = scores.topk(min(k, scores.shape[1]), dim=1)
            near = near + start if places is None else places[part][near]
            if best is not None:
                scores, order = torch.cat([best[0], scores], dim=1).topk(
                    min(k, best[0].shape[1] + scores.shape[1]), dim=1
                )
                near = torch.cat([best[1], near], dim=1).gather(1, order)
            best = scores, near
        return best[0].float().cpu().numpy(), best[1].cpu().numpy()


def _multiplies_exactly(torch: Any) -> bool:
    """Whether float32 is multiplied as such: a program may let torch do so with fewer bits."""
    try:
        return bool(torch.get_float32_matmul_precision() == "highest")
    except RuntimeError:  # it was set by the newer `fp32_precision`, which the old call refuses
        return False
