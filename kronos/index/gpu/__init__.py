"""Indexes on GPUs. **This code has not been run on a GPU** yet.

Tests cover it without a GPU: stand-ins check the calls to FAISS's GPU functions, and torch computes
on its "cpu" device. The proof on real hardware is `python -m benchmarks.gpu`, in a checkout: it
holds every index kind on your GPU against the exact index, and times it. Run it before you rely on
a GPU.

Two ways lead to a GPU. `faiss_gpu` puts the main part of a `LayeredIndex` there, with a build of
FAISS that supports GPUs. `torch_index` holds a whole index there, with torch and `faiss-cpu`.
In both the host's rows stay the truth, and the GPU's rows are a copy. When a GPU's memory is full,
the host goes on with a warning, and nothing is lost.
"""
