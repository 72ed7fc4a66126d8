"""Names of devices, and whether this machine may have a GPU. It never imports torch."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

from kronos.concurrency.forking import call_in_children
from kronos.errors import ConfigurationError

AUTO = "auto"
_NAME = re.compile(r"cpu|mps|cuda(?::[0-9]+)?")
# Device files of GPUs on Linux: NVIDIA (two), WSL, AMD, Jetson.
_ACCELERATOR_NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd", "/dev/nvmap")


def _use_one_thread() -> None:
    """A forked child has none of OpenMP's threads, so torch's first parallel loop would hang."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


call_in_children(_use_one_thread)


def split_devices(device: str) -> list[str]:
    """Split a list of devices.

    Args:
        device: "auto", "cpu", "cuda", "cuda:N", "mps", or several with commas: "cuda:0,cuda:1".

    Returns:
        ["auto"], or one or more names such as "cpu" and "cuda:1".

    Raises:
        ConfigurationError: the device is not valid.
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
    """The CUDA numbers of the named GPUs; None for "auto", which names none.

    Raises:
        ConfigurationError: the device is not valid.
    """
    names = split_devices(device)
    if names == [AUTO]:
        return None
    numbers = [int(name.partition(":")[2] or 0) for name in names if name.startswith("cuda")]
    return list(dict.fromkeys(numbers))


def may_have_accelerator() -> bool:
    """Whether this machine may have a GPU, so that importing torch, which is slow, may pay off."""
    if "torch" in sys.modules:
        return True
    if find_spec("torch") is None:
        return False
    return sys.platform != "linux" or any(Path(node).exists() for node in _ACCELERATOR_NODES)
