"""Exports: a local model as a graph for ONNX Runtime, made once and kept for later processes.

An export is a folder named after its model's fingerprint. It holds the graph, the vocabulary as the
reference loaded it, the reference's vectors of fixed probe texts, and `export.json`, which tells
how to read, and the checksums of the other files. It is used for a model's folder only if the
fingerprints are equal, the checksums hold, and its vectors of the probe texts agree with the
reference's. No torch is needed to check that. A deleted export is made again.
"""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kronos.embedding.fingerprint import file_sha256, model_fingerprint, prompts_sha256
from kronos.embedding.onnx_model import INPUTS, POOLINGS, OnnxModel, Recipe
from kronos.embedding.sentence import Reading
from kronos.files import make_folder, publishing_folder

if TYPE_CHECKING:
    from kronos.types import Vectors

_FORMAT = "kronos-onnx-1"
_ABOUT, _GRAPH, _VOCABULARY, _PROBES = "export.json", "model.onnx", "tokenizer.json", "probes.npy"
_OPSET = 17
TOLERANCE = 1e-5
"""The largest difference between a number of a unit vector and the reference's."""
_SHORT_PROBES = (
    "",
    "A cat sleeps on the warm stone.",
    "  Interest rates ROSE twice in March, and the market fell.\n",
    "def area(r): return 3.14159 * r ** 2  # Größe, naïve",
    "日本語の文 and an emoji 🎉",
)
# The last text is longer than most models read, so it is truncated; it is not read at each start.
_PROBE_TEXTS = (*_SHORT_PROBES, "The river rose, and the ferry did not run. " * 80)


class NotExportableError(Exception):
    """The model does something that the fast engine does not support."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A checked and opened export."""

    model: OnnxModel
    reading: Reading
    fingerprint: str
    dim: int


@dataclass(frozen=True, slots=True)
class Export:
    """An export of a model, described by its `export.json`."""

    folder: Path
    facts: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """The model's fingerprint."""
        return str(self.facts["fingerprint"])

    def open(self, threads: int) -> Opened:
        """Check and open it.

        Args:
            threads: the number of threads that it computes with.

        Raises:
            Exception: it is damaged, or no longer agrees with the reference.
        """
        return _open(self.folder, self.facts, threads)


def find_export(folder: Path, places: Sequence[Path]) -> Export | None:
    """Find the export of the model in a folder; None if there is none.

    Args:
        folder: the model's folder.
        places: folders of exports.
    """
    for place in places:
        for about in _reports(place):
            if (facts := _facts_for(folder, about)) is not None:
                return Export(about.parent, facts)
    return None


def make_export(
    folder: Path, model: Any, reading: Reading, fingerprint: str, *, places: Sequence[Path]
) -> None:
    """Export a loaded SentenceTransformer into the first writable folder.

    Args:
        folder: the folder that it was loaded from.
        model: the reference, on a CPU.
        reading: how it reads.
        fingerprint: its fingerprint.
        places: folders of exports; created if they are missing.

    Raises:
        NotExportableError: it does something that the fast engine does not support, or the export's
            vectors do not agree with its own.
        OSError: no folder is writable.
        Exception: whatever torch raises for a model that it cannot export.
    """
    recipe = _recipe_of(model, reading)
    failure: OSError | None = None
    for place in places:
        export = place / fingerprint
        with ExitStack() as stack:
            try:
                make_folder(place)
                stays = functools.partial(_is_as_good, export)
                made = stack.enter_context(publishing_folder(export, stays=stays))
            except OSError as exc:
                failure = exc
                continue
            _write(made, folder, model, reading, recipe, fingerprint)
        return
    raise failure or OSError("there is no folder for exports")


# -- Reading ---------------------------------------------------------------------------------


def _reports(place: Path) -> list[Path]:
    """The `export.json` files of the exports in a folder; none if it cannot be read."""
    try:
        return sorted(place.glob(f"*/{_ABOUT}"))
    except OSError:
        return []


def _facts_for(folder: Path, about: Path) -> dict[str, Any] | None:
    """The contents of an `export.json`; None if it is not of this folder's model."""
    try:
        facts: dict[str, Any] = json.loads(about.read_bytes())
        if facts["format"] != _FORMAT or facts["prompts"] != prompts_sha256(folder):
            return None
        same = model_fingerprint(folder, facts["reading"]) == facts["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if same else None


def _open(export: Path, facts: dict[str, Any], threads: int) -> Opened:
    # Checksums are computed while the graph is opened: both take long, and both are needed.
    with ThreadPoolExecutor(1) as pool:
        damaged = pool.submit(_damaged_file, export, facts)
        model = OnnxModel(
            export / _GRAPH, export / _VOCABULARY, Recipe(**facts["recipe"]), threads=threads
        )
        if (path := damaged.result()) is not None:
            raise ValueError(f"{path} is damaged")
    reading = Reading(**facts["reading"])
    expected_rows = np.load(export / _PROBES, allow_pickle=False)[: len(_SHORT_PROBES)]
    _check_agreement(_vectors(model, _SHORT_PROBES, reading), expected_rows)
    return Opened(model, reading, facts["fingerprint"], int(expected_rows.shape[1]))


def _damaged_file(export: Path, facts: dict[str, Any]) -> Path | None:
    sums = facts["sha256"].items()
    return next((export / name for name, sum in sums if file_sha256(export / name) != sum), None)


def _vectors(model: Any, texts: Sequence[str], reading: Reading) -> Vectors:
    shown = [text[: reading.max_chars] for text in texts]
    rows = model.encode_document(
        shown, prompt=reading.document_prompt, batch_size=len(shown), show_progress_bar=False
    )
    rows = np.asarray(rows, np.float32)
    unit: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _check_agreement(rows: Vectors, expected: Vectors) -> None:
    apart = float(np.abs(rows - expected).max()) if rows.shape == expected.shape else np.inf
    if not apart <= TOLERANCE:  # also true for NaN
        raise NotExportableError(
            f"its vectors differ by {apart:.1g} from those of sentence-transformers, "
            f"at most {TOLERANCE:g} is allowed"
        )


# -- Writing ---------------------------------------------------------------------------------


def _recipe_of(model: Any, reading: Reading) -> Recipe:
    """The recipe that does what a loaded model's modules do.

    Raises:
        NotExportableError: no recipe can do it.
    """
    kinds = [type(module).__name__ for module in model]
    # All vectors are scaled to unit length at the end, so Normalize needs no step of its own.
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise NotExportableError(f"its modules are {', '.join(kinds)}")
    transformer, pooling = model[0], model[1]
    _check_transformer(transformer)
    if pooling.pooling_mode not in POOLINGS:
        raise NotExportableError(f"its pooling is {pooling.pooling_mode}")
    if not pooling.include_prompt and (reading.document_prompt or reading.query_prompt):
        raise NotExportableError("its pooling excludes the prompt")
    return Recipe(
        max_tokens=reading.max_tokens,
        pooling=pooling.pooling_mode,
        pad_id=int(model.tokenizer.pad_token_id),
        truncate_dim=reading.truncate_dim,
    )


def _check_transformer(transformer: Any) -> None:
    plain: dict[str, Any] = {
        "query_length": None,
        "document_length": None,
        "query_expansion": None,
        "processing_kwargs": {},
        "transformer_task": "feature-extraction",
        "backend": "torch",
    }
    for name, expected in plain.items():
        if (found := getattr(transformer, name, expected)) != expected:
            raise NotExportableError(f"its {name} is {found!r}")
    if list(getattr(transformer, "modality_config", ["text"])) != ["text"]:
        raise NotExportableError("it reads more than text")
    tokenizer = transformer.tokenizer
    if not getattr(tokenizer, "is_fast", False) or tokenizer.pad_token_id is None:
        raise NotExportableError("its tokenizer has no tokenizer.json, or no padding token")
    if (tokenizer.padding_side, tokenizer.truncation_side) != ("right", "right"):
        raise NotExportableError("its tokenizer pads or truncates on the left")
    if any(tensor.dtype.itemsize != 4 for tensor in transformer.parameters()):
        raise NotExportableError("its weights are not float32")


def _write(
    made: Path, folder: Path, model: Any, reading: Reading, recipe: Recipe, fingerprint: str
) -> None:
    (made / _VOCABULARY).write_text(model.tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    expected = _vectors(model, _PROBE_TEXTS, reading)
    with open(made / _PROBES, "wb") as file:
        np.save(file, expected, allow_pickle=False)
    if not _take_own_graph(made, folder, recipe, reading, expected):
        _export_graph(model[0].auto_model, model.tokenizer, made / _GRAPH)
        _check_graph(made, recipe, reading, expected)
    names = (_GRAPH, _VOCABULARY, _PROBES)
    facts = {
        "format": _FORMAT,
        "fingerprint": fingerprint,
        "prompts": prompts_sha256(folder),
        "reading": asdict(reading),
        "recipe": asdict(recipe),
        "sha256": {name: file_sha256(made / name) for name in names},
    }
    (made / _ABOUT).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _take_own_graph(
    made: Path, folder: Path, recipe: Recipe, reading: Reading, expected: Vectors
) -> bool:
    """Copy the graph that the model's folder brings, if there is one that agrees."""
    own = folder / "onnx" / "model.onnx"
    # A graph with its weights in a second file would be incomplete.
    if not own.is_file() or any(own.parent.glob("model.onnx?data*")):
        return False
    try:
        shutil.copyfile(own, made / _GRAPH)
        _check_graph(made, recipe, reading, expected)
    except Exception:  # of another model or precision, or damaged: then one is exported
        return False
    return True


def _check_graph(made: Path, recipe: Recipe, reading: Reading, expected: Vectors) -> None:
    model = OnnxModel(made / _GRAPH, made / _VOCABULARY, recipe)
    _check_agreement(_vectors(model, _PROBE_TEXTS, reading), expected)


def _export_graph(transformer: Any, tokenizer: Any, path: Path) -> None:
    import inspect

    import torch

    # Two texts of two lengths, so that no size of the example becomes a constant in the graph.
    example = tokenizer(["a", "a cat sleeps on warm stone"], padding=True, return_tensors="pt")
    known = inspect.signature(transformer.forward).parameters
    names = [name for name in INPUTS if name in example and name in known]

    class Tokens(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, *values: Any) -> Any:
            given = dict(zip(names, values, strict=True))
            return self.transformer(**given, return_dict=False)[0]

    with _plain_attention(transformer), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # advice for developers of exporters
        torch.onnx.export(
            Tokens().eval(),
            tuple(example[name] for name in names),
            str(path),
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes={
                name: {0: "texts", 1: "tokens"} for name in (*names, "last_hidden_state")
            },
            opset_version=_OPSET,
            dynamo=False,
        )


@contextmanager
def _plain_attention(transformer: Any) -> Iterator[None]:
    """Use attention in single steps, which ONNX Runtime fuses better than torch's own operator."""
    before = getattr(transformer.config, "_attn_implementation", None)
    if before is None:
        yield
        return
    try:
        with suppress(ValueError):  # the model supports only one kind
            transformer.set_attn_implementation("eager")
        yield
    finally:
        transformer.set_attn_implementation(before)


def _is_as_good(export: Path, made: Path) -> bool:
    """Whether an existing export has the same description as a new one, and is undamaged."""
    try:
        facts = json.loads((made / _ABOUT).read_bytes())
        same = bool(json.loads((export / _ABOUT).read_bytes()) == facts)
        return same and _damaged_file(export, facts) is None
    except (OSError, ValueError):
        return False
