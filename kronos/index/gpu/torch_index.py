"""`TorchIndex`: an exact index on a GPU through torch, for a FAISS without GPU support.

The rows on the host are the truth: they are changed, saved and returned there, bit by bit. The
device has a copy, which the next search brings up to date by copying only new and overwritten rows.
When the device fails, usually because its memory is full, the host goes on with a warning and
nothing is lost. torch is imported only if there may be a GPU.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from kronos.concurrency.forking import keep_forever, notify_of_forks
from kronos.devices import gpu_numbers, may_have_accelerator
from kronos.errors import KronosWarning
from kronos.index.base import (
    KeyTable,
    check_keys,
    check_queries,
    check_rows,
    distinct,
    order_ties,
    require_known,
    rows_from_bytes,
    rows_to_buffers,
)
from kronos.index.faiss.flat import FaissIndex
from kronos.index.gpu.rescoring import HALF_ERROR, MAX_HALF_LENGTH, longest, rescore

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Keys, Vectors

_MAX_NUMBERS = 2**26
"""Numbers that a search holds on the device beside the rows, at most: 256 MiB of float32."""
_MAX_QUERIES = 1024
"""Queries that are searched for at once."""
_SLACK = 4
"""A new buffer has room for one more row for each `_SLACK` rows. So filling it copies each row only
a few times, whatever the number of changes."""
_GATHER_BELOW = 2
"""If less than one row in this many is allowed, the allowed rows are gathered; else the others are
masked."""
_COMPACT_FROM = 5
"""If more than one row in this many was removed, the others are moved together."""


def torch_device(device: str) -> str | None:
    """The GPU that torch can use for a requested device; None if there is none.

    If there cannot be a GPU, torch is not imported. Of several GPUs the first is returned.

    Raises:
        ConfigurationError: the device's name has no meaning.
    """
    numbers = gpu_numbers(device)
    if numbers == [] or not may_have_accelerator():
        return None
    try:
        import torch

        number = numbers[0] if numbers else 0
        present = torch.cuda.is_available() and number < torch.cuda.device_count()
    except Exception:  # no torch, or a broken driver: there is none to use
        return None
    return f"cuda:{number}" if present else None


class TorchIndex:
    """A `VectorIndex` on a torch device. Not thread-safe; its owner locks.

    Args:
        dim: the width of a vector.
        device: torch's name of the device.
        half: keep the device's rows in float16, half as many bytes. They propose candidates, which
            the host's rows score, so the result is the same.
    """

    kind = "torch-flat"

    def __init__(self, dim: int, *, device: str = "cuda", half: bool = False) -> None:
        self.dim = dim
        self._keys: Keys = np.empty(0, np.int64)
        """An array with spare room, as `_rows` and `_alive`; the first `_size` of each are used."""
        self._rows: Vectors = np.empty((0, dim), np.float32)
        self._alive = np.empty(0, np.bool_)
        self._size = self._count = 0
        self._highest = -(2**63)
        """An upper bound of the keys that have a row."""
        self._table: KeyTable | None = None
        """Finds the row of a key. A removed key keeps its row, in case it is added again."""
        self._copy = _DeviceRows(dim, device, half)

    @classmethod
    def from_bytes(
        cls, data: bytes | memoryview, dim: int, *, device: str = "cuda", half: bool = False
    ) -> TorchIndex:
        """Read what `to_buffers` wrote.

        Raises:
            SnapshotError: the bytes are no index, or an index of another width.
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
            self._copy.note_changes(rows, vectors[known])
            keys, vectors = keys[~known], vectors[~known]
        self._append(keys, vectors)

    def remove(self, keys: Keys) -> int:
        """Remove keys; see `VectorIndex.remove`."""
        rows, _ = self._find_live(distinct(check_keys(keys)))
        self._alive[rows] = False
        self._count -= rows.size
        if (self._size - self._count) * _COMPACT_FROM > self._size:
            self._compact()
        return rows.size

    def search(
        self, queries: Vectors, k: int, *, allowed: Keys | None = None
    ) -> tuple[Vectors, Keys]:
        """Find the k nearest keys of each query; see `VectorIndex.search`.

        Equal scores are ordered by key, lowest first. If several keys share the score of the last
        place, it is undefined which of them are returned.
        """
        queries = check_queries(queries, k, self.dim)
        rows = None
        if allowed is not None:
            rows = self._find_live(distinct(check_keys(allowed)))[0]
        elif self._count < self._size:
            rows = np.flatnonzero(self._alive[: self._size])
        k = min(k, self._count if rows is None else rows.size)
        scores = np.empty((len(queries), k), np.float32)
        found = np.empty((len(queries), k), np.int64)
        if k:
            for start in range(0, len(queries), _MAX_QUERIES):
                part = slice(start, start + _MAX_QUERIES)
                scores[part], found[part] = self._search(queries[part], k, rows)
        return order_ties(scores, self._keys.take(found))

    def _search(
        self, queries: Vectors, k: int, rows: NDArray[np.intp] | None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        held = self._rows[: self._size]
        try:
            return self._copy.search(queries, k, held, rows)
        except RuntimeError as exc:  # also raised for lack of memory, and by a lost GPU
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
        return np.sort(self._keys[self._live_rows()])

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Whether the index holds each of the keys: (n,) bool."""
        return self._find_live(check_keys(keys))[1]

    def vectors_of(self, keys: Keys) -> Vectors:
        """The vectors of keys: (n, dim) float32.

        Raises:
            NotFoundError: a key is not held.
        """
        keys = check_keys(keys)
        rows, known = self._find_live(keys)
        require_known(keys, known)
        return self._rows.take(rows, axis=0)

    def to_buffers(self) -> list[memoryview]:
        """The index as bytes that `from_bytes` and `FaissIndex` read: raw arrays."""
        live = self._live_rows()
        return rows_to_buffers(self._keys[live], self._rows[live])

    def on_cpu(self) -> FaissIndex:
        """An index of the same keys and vectors on the CPU."""
        index, live = FaissIndex(self.dim), self._live_rows()
        index.upsert(self._keys[live], self._rows[live])
        return index

    @property
    def is_on_device(self) -> bool:
        """Whether the device is in use; False after it failed."""
        return self._copy.is_on_device

    def _append(self, keys: Keys, vectors: Vectors) -> None:
        if not keys.size:
            return
        start, self._size = self._size, self._size + keys.size
        if self._size > self._keys.size:
            self._make_room(max(self._size, 2 * start))
        new = slice(start, self._size)
        self._keys[new], self._rows[new], self._alive[new] = keys, vectors, True
        self._copy.note_changes(np.empty(0, np.intp), vectors)
        self._count += keys.size
        self._highest = max(self._highest, int(keys.max()))
        if self._table is not None:
            self._table.append(keys)

    def _make_room(self, size: int) -> None:
        more = size - self._keys.size
        self._keys = np.concatenate([self._keys, np.empty(more, np.int64)])
        self._alive = np.concatenate([self._alive, np.zeros(more, np.bool_)])
        self._rows = np.concatenate([self._rows, np.empty((more, self.dim), np.float32)])

    def _compact(self) -> None:
        """Drop the rows of removed keys."""
        live = self._live_rows()
        self._keys, self._rows = self._keys[live], self._rows[live]
        self._alive = np.ones(live.size, np.bool_)
        self._size = live.size
        self._table = None
        self._copy.drop()

    def _live_rows(self) -> NDArray[np.intp]:
        return np.flatnonzero(self._alive[: self._size])

    def _find(self, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The rows of the keys that have one, and which keys those are: (n,) bool."""
        if self._table is None:
            self._table = KeyTable(self._keys[: self._size])
        return self._table.find(keys)

    def _find_live(self, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The same, without removed keys."""
        rows, known = self._find(keys)
        known[known] = alive = self._alive[rows]
        return rows[alive], known


class _DeviceRows:
    """A copy of the host's rows on a device; after the device failed, the host's rows."""

    def __init__(self, dim: int, device: str, half: bool) -> None:
        self.is_on_device = True
        self._dim = dim
        self._device = device
        self._half = half
        self._longest = 1.0
        """An upper bound of the rows' lengths."""
        self._buffer: Any = None
        self._size = 0
        """How many rows were copied."""
        self._stale: list[NDArray[np.intp]] = []
        """Copied rows that were overwritten on the host since."""
        notify_of_forks(self)

    def before_fork(self) -> None:
        """Nothing to do."""

    def after_fork(self, in_child: bool) -> None:
        """Leave the device to the parent: CUDA does not work in a child."""
        if in_child and self.is_on_device:
            keep_forever(self._buffer)
            self.give_up()

    def note_changes(self, rows: NDArray[np.intp], vectors: Vectors) -> None:
        """Note rows that were overwritten, and the new vectors that must be copied."""
        if rows.size:
            self._stale.append(rows)
        self._longest = max(self._longest, longest(vectors))
        if self._half and self._longest > MAX_HALF_LENGTH:
            self._half = False
            self.drop()

    def drop(self) -> None:
        """Drop the copy: the next search makes a new one."""
        self._buffer, self._size, self._stale = None, 0, []

    def give_up(self) -> None:
        """Search the host's rows from now on."""
        self.is_on_device, self._half, self._device = False, False, "cpu"
        self.drop()

    def search(
        self, queries: Vectors, k: int, held: Vectors, rows: NDArray[np.intp] | None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Find the k nearest rows of each query.

        Args:
            queries: (n, dim) float32, n <= 1024.
            k: at least 1 and at most the number of rows that may be found.
            held: (m, dim) float32, the host's rows.
            rows: the rows that may be found; None: all.

        Returns:
            (n, k) scores and rows.

        Raises:
            RuntimeError: the device failed, for example its memory is full.
        """
        import torch

        def nearest(queries: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
            return self._nearest(torch, queries, k, rows)

        with torch.inference_mode():
            self._update(torch, held)
            if not self._half and _multiplies_exactly(torch):
                return nearest(queries, k)
            most = len(held) if rows is None else rows.size
            error = HALF_ERROR * self._longest
            found = rescore(nearest, queries, k, held, most=most, error=error)
        assert found is not None, "k rows may be found"
        return found

    def _update(self, torch: Any, held: Vectors) -> None:
        """Copy the rows that are new or were overwritten since the last update."""
        if not self.is_on_device:
            self._buffer = torch.from_numpy(held)
            return
        if self._buffer is None or len(held) > len(self._buffer):
            self.drop()  # before the next one is made: the memory may not hold both
            dtype = torch.float16 if self._half else torch.float32
            room = (len(held) + len(held) // _SLACK, self._dim)
            self._buffer = torch.empty(room, dtype=dtype, device=self._device)
        step = max(_MAX_NUMBERS // self._dim, 1)
        for start in range(self._size, len(held), step):
            part = torch.from_numpy(held[start : start + step])
            self._buffer[start : start + len(part)].copy_(part)
        for rows in self._stale:
            rows = rows[rows < self._size]  # the others have just been copied
            part = torch.from_numpy(held[rows]).to(self._device, self._buffer.dtype)
            self._buffer[torch.from_numpy(rows).to(self._device)] = part
        self._size, self._stale = len(held), []

    def _nearest(
        self, torch: Any, queries: Vectors, k: int, rows: NDArray[np.intp] | None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Compare the queries with all rows that may be found, as many at once as memory allows."""
        size = len(self._buffer) if not self.is_on_device else self._size
        asked = torch.tensor(queries).to(self._device, self._buffer.dtype)
        places = hidden = None
        if rows is not None and rows.size * _GATHER_BELOW < size:
            places, size = torch.from_numpy(rows).to(self._device), rows.size
        elif rows is not None:
            mask = np.ones(size, np.bool_)
            mask[rows] = False
            hidden = torch.from_numpy(mask).to(self._device)
        top: Any = None
        step = max(_MAX_NUMBERS // max(len(queries), self._dim), 1)
        for start in range(0, size, step):
            part = slice(start, min(start + step, size))
            block = self._buffer[part] if places is None else self._buffer[places[part]]
            scores = asked @ block.T
            if hidden is not None:
                scores.masked_fill_(hidden[part], -torch.inf)
            scores, near = scores.topk(min(k, scores.shape[1]), dim=1)
            near = near + start if places is None else places[part][near]
            if top is not None:
                scores, order = torch.cat([top[0], scores], dim=1).topk(
                    min(k, top[0].shape[1] + scores.shape[1]), dim=1
                )
                near = torch.cat([top[1], near], dim=1).gather(1, order)
            top = scores, near
        return top[0].float().cpu().numpy(), top[1].cpu().numpy()


def _multiplies_exactly(torch: Any) -> bool:
    """Whether torch multiplies float32 with all bits: a program may allow it fewer."""
    try:
        return bool(torch.get_float32_matmul_precision() == "highest")
    except RuntimeError:  # set through the newer `fp32_precision`, which the old call refuses
        return False
