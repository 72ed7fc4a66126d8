"""`HashEmbedder`: vectors from the letters of a text, for use without a model.

It is lexical: texts that share words, or parts of words, are near each other. It does not know
meaning. A vector is a pure function of text and width: the same bytes in every process and on every
platform. (Which rare characters are letters depends on Python's Unicode tables.) It has no state
and draws no random numbers.

The method is signed feature hashing (Weinberger et al., 2009) of lightly stemmed words and of their
character trigrams. All weights are dyadic fractions, so sums are exact in any order. At the end
large values are damped, so that no single word, and no collision, outweighs the rest.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kronos.concurrency.large_values import find_all, normalize
from kronos.errors import ConfigurationError

if TYPE_CHECKING:
    from kronos.types import Vectors

_VERSION = "v1"
"""Part of the fingerprint: any change that moves a vector must change it."""
_MIN_DIM = 8
_WORD_SLOTS = 3
_WORD_VALUE = 1.0
_TRIGRAM_VALUE = 0.875
_COMMON_WEIGHT = 0.625
_FUNCTION_WEIGHT = 0.0625
_DAMPING = 2.0
"""About where damping sets in, in units of a vector's root mean square."""
_CHARACTERS_PER_BATCH = 2**20
"""Texts are embedded in batches of about this many characters, which bounds the memory."""
_TEXTS_PER_BATCH = 2048
_WORDS_AT_ONCE = 2**16

# Underscores separate words, as in code; each ideograph is a word. Longer words are split, since a
# text may be one word of 10 MB.
_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_WORDS = re.compile(f"[{_IDEOGRAPHS}]|[^\\W_{_IDEOGRAPHS}]{{1,40}}")
# The same for ASCII text, only faster.
_ASCII_WORDS = re.compile("[a-z0-9]{1,40}")
_MARKS = re.compile(r"\S{1,40}")

_FUNCTION_WORDS = frozenset(
    """a about above after again against all also although am among an and another any anything are
    around as at away back be because been before being below between both but by can cannot could
    did do does doing done down during each either else enough even ever every everything few for
    from further had has have having he hence her here hers herself him himself his how however i if
    in indeed instead into is it its itself just least less may me might mine more most much must my
    myself neither never no nor not nothing now of off often on once one only onto or other others
    our ours ourselves out over own perhaps quite rather same shall she should since so some
    something sometimes soon still such than that the their theirs them themselves then there
    therefore these they thing things this those though through thus to together too toward towards
    under until up upon us very was we well were what whatever when where whether which while who
    whom whose why will with within without would yet you your yours yourself don didn doesn isn
    wasn won ve ll re""".split()
)
_COMMON_WORDS = frozenset(
    """many long name called call type kind year years people person number time times way day two
    three first second new old like use used using make makes made get got go know see say said
    give take want need good lot example following include including part different per via
    etc""".split()
)
# Trigrams of common prefixes and suffixes tell nothing about a word.
_AFFIX_TRIGRAMS = frozenset(
    """ed> es> er> ers al> ly> ing ng> ion on> tio ati ate te> ent nt> ity ty> ive ve> ous us> ble
    le> ful ess ss> nce ce> men ter ver est st> ist ism ry> or> ar> ic> <re <co <de <in <un <pr
    <ex <di <st <se <ma""".split()
)

_WEIGHTS = {
    **dict.fromkeys(_COMMON_WORDS, _COMMON_WEIGHT),
    **dict.fromkeys(_FUNCTION_WORDS, _FUNCTION_WEIGHT),
}

_Floats: TypeAlias = NDArray[np.float64]
_Hashes: TypeAlias = NDArray[np.uint64]
_Indices: TypeAlias = NDArray[np.int64]


class HashEmbedder:
    """An `Embedder` without a model.

    Args:
        dim: the width of a vector, at least 8; wider is better, up to about 1,024.

    Raises:
        ConfigurationError: the width is not a whole number of at least 8.
    """

    def __init__(self, dim: int = 384) -> None:
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < _MIN_DIM:
            raise ConfigurationError(
                f"the width of hash vectors must be a whole number of at least {_MIN_DIM}, "
                f"not {dim!r}",
                field="embedding_dim",
            )
        self.dim = dim
        self.model_id = "hash"
        self.fingerprint = f"hash:{_VERSION}:dim={dim}"

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """Embed texts: (n, dim) float32 unit rows. Each row depends only on its own text."""
        rows = np.empty((len(texts), self.dim), np.float32)
        start = 0
        for words in _batches(texts):
            end = start + len(words)
            rows[start:end] = _damp(_sums(words, self.dim))
            start = end
        return rows

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Embed queries, in the same way as texts, so a text finds itself with score 1."""
        return self.embed_documents(texts)


def _batches(texts: Sequence[str]) -> Iterator[list[list[str]]]:
    """The words of the texts, in batches."""
    part: list[list[str]] = []
    characters = 0
    for text in texts:
        part.append(_words_of(text))
        characters += len(text)
        if characters > _CHARACTERS_PER_BATCH or len(part) == _TEXTS_PER_BATCH:
            yield part
            part, characters = [], 0
    if part:
        yield part


def _words_of(text: str) -> list[str]:
    """A text's words; without letters, its runs of other characters; always at least one word."""
    words = find_all(_ASCII_WORDS if text.isascii() else _WORDS, normalize(text))
    return words or find_all(_MARKS, text) or [""]


def _sums(texts: list[list[str]], dim: int) -> _Floats:
    """The weighted sums of the texts' features: (n, dim) float64, exact."""
    numbers: defaultdict[str, int] = defaultdict(itertools.count().__next__)
    flat = _numbers_of(itertools.chain.from_iterable(texts), numbers)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    row_of = np.repeat(np.arange(len(texts)), lengths)
    pairs, counts = np.unique(row_of * len(numbers) + flat, return_counts=True)
    rows, words = np.divmod(pairs, len(numbers))
    # Rounded to dyadic fractions, since the last bit of a logarithm differs between platforms.
    weights = np.round((1 + np.log(counts)) * 1024) / 1024

    features = _features(list(numbers), dim)
    places, owners = features.of(words)
    sums = np.bincount(
        rows[owners] * dim + features.slots[places],
        weights=weights[owners] * features.values[places],
        minlength=len(texts) * dim,
    )
    return sums.reshape(len(texts), dim).astype(np.float64, copy=False)


def _numbers_of(words: Iterator[str], numbers: Mapping[str, int]) -> _Indices:
    """The number of each word: (n,) int64; in parts, between which other threads get a turn."""
    parts = [np.empty(0, np.int64)]
    while part := [*itertools.islice(words, _WORDS_AT_ONCE)]:
        parts.append(np.fromiter(map(numbers.__getitem__, part), np.int64, len(part)))
    return np.concatenate(parts)


def _damp(sums: _Floats) -> Vectors:
    """Scale to unit length after damping large values: (n, dim) float32."""
    # Features may cancel each other out, in theory all of them: then one slot stands for the text.
    sums[~sums.any(axis=1), 0] = 1.0
    scaled = sums / np.sqrt(np.mean(sums * sums, axis=1, keepdims=True))
    damped = scaled / np.sqrt(1 + (scaled / _DAMPING) ** 2)
    rows: Vectors = (damped / np.linalg.norm(damped, axis=1, keepdims=True)).astype(np.float32)
    return rows


class _Features:
    """The features of distinct words; the features of one word are adjacent."""

    def __init__(self, owners: _Indices, slots: _Indices, values: _Floats, words: int) -> None:
        order = np.argsort(owners, kind="stable")
        self.slots = slots[order]
        self.values = values[order]
        self._counts = np.bincount(owners, minlength=words)
        self._starts = np.cumsum(self._counts) - self._counts

    def of(self, words: _Indices) -> tuple[_Indices, _Indices]:
        """The places of these words' features, and the owner of each: a position in `words`."""
        counts = self._counts[words]
        owners = np.repeat(np.arange(len(words)), counts)
        first = np.cumsum(counts) - counts
        places = np.arange(len(owners)) - np.repeat(first - self._starts[words], counts)
        return places, owners


def _features(words: list[str], dim: int) -> _Features:
    weights = np.fromiter((_WEIGHTS.get(word, 1.0) for word in words), np.float64, len(words))
    numbers = np.arange(len(words))
    stems = np.fromiter(map(_stem_hash, words), np.uint64, len(words))
    owners, hashes, values = [], [], []
    for slot in range(_WORD_SLOTS):
        owners.append(numbers)
        hashes.append(_mix(stems + np.uint64(slot)))
        values.append(weights * _WORD_VALUE)
    words_of, trigrams = _trigrams(words)
    owners.append(words_of)
    hashes.append(_mix(trigrams))
    values.append(weights[words_of] * _TRIGRAM_VALUE)
    slots, signs = _slots(np.concatenate(hashes), dim)
    return _Features(np.concatenate(owners), slots, np.concatenate(values) * signs, len(words))


def _trigrams(words: list[str]) -> tuple[_Indices, _Hashes]:
    """The word of each trigram of `<word>`, for all words, and the trigrams as numbers."""
    codes = _codes("".join(f"<{word}>" for word in words))
    lengths = np.fromiter(map(len, words), np.int64, len(words)) + 2
    owners = np.repeat(np.arange(len(words)), lengths)
    whole = np.flatnonzero(owners[:-2] == owners[2:])
    trigrams = _as_numbers(codes, whole)
    telling = ~np.isin(trigrams, _AFFIXES)
    return owners[whole[telling]], trigrams[telling]


def _as_numbers(codes: _Hashes, at: _Indices) -> _Hashes:
    """The three characters from each place on as one number: a character has 21 bits."""
    numbers: _Hashes = codes[at] << np.uint64(42)
    numbers |= codes[at + 1] << np.uint64(21)
    numbers |= codes[at + 2]
    return numbers


def _codes(text: str) -> _Hashes:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)


_AFFIXES = _as_numbers(_codes("".join(_AFFIX_TRIGRAMS)), np.arange(0, 3 * len(_AFFIX_TRIGRAMS), 3))


@functools.lru_cache(maxsize=2**16)
def _stem_hash(word: str) -> int:
    data = _stem(word).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _mix(numbers: _Hashes) -> _Hashes:
    """Scatter numbers over 64 bits: the finalizer of splitmix64 (Steele et al., 2014)."""
    mixed: _Hashes = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _slots(hashes: _Hashes, dim: int) -> tuple[_Indices, _Floats]:
    """A slot from the upper half of each hash, and a sign from its lowest bit."""
    slots = ((hashes >> np.uint64(32)) * np.uint64(dim)) >> np.uint64(32)
    signs = np.where(hashes & np.uint64(1), 1.0, -1.0)
    return slots.astype(np.int64), signs


def _stem(word: str) -> str:
    """Remove common English endings: rough, but the same for the forms of a word."""
    if len(word) < 4:
        return word
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    if word.endswith("ie") and len(word) > 4:
        word = f"{word[:-2]}y"
    for ending in ("ing", "ed", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = _single(word.removesuffix(ending))
            break
    if word.endswith("e") and len(word) > 3:
        word = word[:-1]
    return f"{word[:-1]}i" if word.endswith("y") and len(word) > 3 else word


def _single(word: str) -> str:
    """`stopp` becomes `stop`; `fall`, `miss` and `buzz` stay."""
    doubled = len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz"
    return word[:-1] if doubled else word
