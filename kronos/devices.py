"""The names of devices, and whether this machine may have a GPU at all. torch is not asked."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

from kronos.concurrency.forking import in_children
from kronos.errors import ConfigurationError

AUTO = "auto"
_NAME = re.compile(r"cpu|mps|cuda(?::[0-9]+)?")
# What shows on Linux that there is a GPU: NVIDIA's, one in WSL, AMD's, a Jetson's.
_ACCELERATOR_NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd", "/dev/nvmap")


def _one_thread() -> None:
    """OpenMP's threads are not in a forked child, and torch's first parallel loop would hang."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


in_children(_one_thread)


def split_devices(device: str) -> list[str]:
    """The devices that a caller named: ["auto"], or one or more such as "cpu" and "cuda:1".

    Args:
        device: "auto", "cpu", "cuda", "cuda:N", "mps", or several with commas: "cuda:0,cuda:1".

    Raises:
        ConfigurationError: it is none of these.
    """
    names = device.split(",") if isinstance(device, str) else []
    if names == [AUTO] or (names and all(map(_NAME.fullmatch, names))):
        return names
    raise ConfigurationError(
        f'device must be "auto", "cpu", "cuda", "cuda:0" (or another number) or "mps", or '
        f'several of them such as "cuda:0,cuda:1", not {device!r}',
        field="device",
    )


def gpu_numbers(device: str) -> list[int] | None:
    """The numbers of the GPUs named, for CUDA; None for "auto", which leaves them open.

    Raises:
        ConfigurationError: the device has no meaning.
    """
    names = split_devices(device)
    if names == [AUTO]:
        return None
    numbers = [int(name.partition(":")[2] or 0) for name in names if name.startswith("cuda")]
    return list(dict.fromkeys(numbers))


def may_have_accelerator() -> bool:
    """Whether torch is worth asking for a GPU: to import it takes seconds."""
    if "torch" in sys.modules:
        return True
    if find_spec("torch") is None:
        return False
    return sys.platform != "linux" or any(Path(node).exists() for node in _ACCELERATOR_NODES)
