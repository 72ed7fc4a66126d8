"""The faiss module, how many threads it uses, and its memory as NumPy arrays.

FAISS uses OpenMP, whose thread count is process-wide and shared with torch. A call here that
changes the count restores it at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from kronos.concurrency.forking import call_in_children

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Vectors

LIBRARY: Any = faiss
"""The faiss module, for code that asks what this build of FAISS can do."""
FEW_QUERIES = 8
"""A search for at most this many queries runs on one thread. Two threads that share one scan wait
for each other at its end, so another busy process slows both down."""
# A forked child has none of OpenMP's threads, and its first parallel loop would wait for them.
call_in_children(lambda: faiss.omp_set_num_threads(1))
_IMPORTING_PROCESS = os.getpid()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let FAISS use the calling thread alone inside the `with` block."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def threads_for(queries: Vectors) -> AbstractContextManager[None]:
    """Limit FAISS to one thread for a few queries; see `FEW_QUERIES`."""
    return one_thread() if len(queries) <= FEW_QUERIES else nullcontext()


def use_half_of_the_processors() -> None:
    """Limit FAISS on the calling thread, which builds, so that searches keep some processors."""
    most = 1 if os.getpid() != _IMPORTING_PROCESS else (os.cpu_count() or 1) // 2
    faiss.omp_set_num_threads(max(min(most, faiss.omp_get_max_threads()), 1))


# -- Memory --------------------------------------------------------------------------------------


class _Owned:
    """An array over FAISS's memory, which keeps the owner of the memory alive.

    Args:
        owner: the FAISS object that owns the memory; it must not grow meanwhile.
        view: a view of the memory.
    """

    def __init__(self, owner: Any, view: NDArray[Any]) -> None:
        self._owner = owner
        self.__array_interface__ = view.__array_interface__


def keeping_alive(owner: Any, view: NDArray[Any]) -> NDArray[Any]:
    """A view of FAISS's memory that keeps its owner alive; the owner must not grow meanwhile."""
    return np.asarray(_Owned(owner, view)) if view.size else view


def lend(vector: Any, values: NDArray[Any]) -> bool:
    """Let a FAISS vector read an array in place, for example in a mapped file.

    The caller keeps the array alive and adds nothing to the vector. FAISS has such views since
    1.11. Its own function to make one needs a C++ pointer, so the fields are set here.

    Returns:
        False if this FAISS cannot do it; then the vector is unchanged.
    """
    if not hasattr(vector, "view_data"):
        return False
    pointer = faiss.swig_ptr(values)
    vector.is_owned = False
    vector.view_data = vector.c_ptr = pointer
    vector.view_size = vector.c_size = values.size
    return True


def fill(flat: Any, vectors: Vectors) -> None:
    """Let an empty flat index hold vectors, read in place if this FAISS can.

    Args:
        flat: the index; nothing is added to it later.
        vectors: (n, dim) float32; the caller keeps them alive.
    """
    if lend(flat.codes, vectors.reshape(-1).view(np.uint8)):
        flat.ntotal = len(vectors)
    else:
        flat.add(vectors)


def rows_of(flat: Any) -> Vectors:
    """The rows of a flat index: an (n, dim) view that the next change may leave dangling."""
    if not flat.ntotal:
        return np.empty((0, flat.d), np.float32)
    values: Vectors = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d)
    return values.reshape(flat.ntotal, flat.d)


def integers_of(vector: Any) -> NDArray[np.int32]:
    """A view of a FAISS vector of int32, whichever class this FAISS has for it."""
    if not vector.size():
        return np.empty(0, np.int32)
    values: NDArray[np.int32] = faiss.rev_swig_ptr(vector.data(), vector.size())
    return values
