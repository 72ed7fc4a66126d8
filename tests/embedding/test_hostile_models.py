"""A model's folder is data: no code in it is ever run."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kronos.embedding.loading import load_model
from kronos.errors import ModelLoadError
from kronos.settings import Settings

Copy = Callable[[str], Path]

CODE = """
from pathlib import Path
import torch
Path({marker!r}).touch()
class Evil(torch.nn.Module):
    def __init__(self, *_, **__):
        super().__init__()
        Path({marker!r}).touch()
    @classmethod
    def load(cls, *_, **__):
        return cls()
    from_pretrained = from_config = load
def evil(*_, **__):
    Path({marker!r}).touch()
"""


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def module_of_its_own(folder: Path, marker: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 9, "name": "9", "path": "", "type": "evil_code.Evil"})
    (folder / "modules.json").write_text(json.dumps(modules))


def first_module_of_its_own(folder: Path, marker: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "evil_code.Evil"
    (folder / "modules.json").write_text(json.dumps(modules))


def module_that_is_a_function(folder: Path, marker: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "evil_code.evil"
    (folder / "modules.json").write_text(json.dumps(modules))


def model_class_of_its_own(folder: Path, marker: Path) -> None:
    names = {"AutoConfig": "evil_code.Evil", "AutoModel": "evil_code.Evil"}
    change(folder / "config.json", auto_map=names, model_type="evil")


def model_class_beside_a_known_type(folder: Path, marker: Path) -> None:
    change(folder / "config.json", auto_map={"AutoModel": "evil_code.Evil"})


def model_class_of_another_repository(folder: Path, marker: Path) -> None:
    change(folder / "config.json", auto_map={"AutoModel": f"{folder}--evil_code.Evil"})


def tokenizer_of_its_own(folder: Path, marker: Path) -> None:
    names = {"AutoTokenizer": ["evil_code.Evil", "evil_code.Evil"]}
    change(folder / "tokenizer_config.json", auto_map=names, tokenizer_class="Evil")


def pickled_weights(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Trap(marker)}))


def pickle_in_the_place_of_safetensors(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": Trap(marker)}))


def activation_of_its_own(folder: Path, marker: Path) -> None:
    dense = folder / "2_Dense"
    dense.mkdir()
    sizes = {"in_features": 32, "out_features": 32, "bias": False}
    (dense / "config.json").write_text(
        json.dumps({**sizes, "activation_function": "evil_code.evil"})
    )
    (dense / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(marker)))
    modules = json.loads((folder / "modules.json").read_text())
    kind = "sentence_transformers.models.Dense"
    modules.append({"idx": 9, "name": "9", "path": "2_Dense", "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))


def activation_of_its_own_with_sound_weights(folder: Path, marker: Path) -> None:
    import torch
    from safetensors.torch import save_file

    activation_of_its_own(folder, marker)
    (folder / "2_Dense/pytorch_model.bin").unlink()
    save_file({"linear.weight": torch.eye(32)}, str(folder / "2_Dense/model.safetensors"))


def configuration_of_its_own(folder: Path, marker: Path) -> None:
    change(
        folder / "config_sentence_transformers.json",
        similarity_fn_name="evil_code.evil",
        model_type="evil_code.Evil",
        auto_map={"SentenceTransformer": "evil_code.Evil"},
    )


TRAPS = [
    module_of_its_own,
    first_module_of_its_own,
    module_that_is_a_function,
    model_class_of_its_own,
    model_class_beside_a_known_type,
    model_class_of_another_repository,
    tokenizer_of_its_own,
    pickled_weights,
    pickle_in_the_place_of_safetensors,
    activation_of_its_own,
    activation_of_its_own_with_sound_weights,
    configuration_of_its_own,
]
HARMLESS = {
    model_class_beside_a_known_type,
    model_class_of_another_repository,
    tokenizer_of_its_own,
    configuration_of_its_own,
}
"""Files that the library ignores: the model loads and is the same as without them."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_no_code_in_a_folder_is_run(
    copy_tiny: Copy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trap: Callable[[Path, Path], None],
) -> None:
    folder, marker = copy_tiny("hostile"), tmp_path / "it ran"
    (folder / "evil_code.py").write_text(CODE.format(marker=str(marker)))
    trap(folder, marker)
    # As when a program is started in the folder.
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    try:
        load_model(str(folder), device="cpu", cache_dir=None, settings=Settings())
        refused = False
    except ModelLoadError:
        refused = True
    assert not marker.exists(), "code of the folder was run"
    assert "evil_code" not in sys.modules
    assert refused == (trap not in HARMLESS)


def test_the_traps_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "it ran"
    pickle.loads(pickle.dumps(Trap(marker)))
    assert marker.exists()
    marker.unlink()
    (tmp_path / "evil_code.py").write_text(CODE.format(marker=str(marker)))
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("evil_code")
    assert marker.exists()
    monkeypatch.delitem(sys.modules, "evil_code")
