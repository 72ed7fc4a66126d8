"""Word search in every script: what was written is found by its words, under every tokenizer."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kronos import MemoryStore
from kronos.db.fulltext.folding import read
from kronos.db.fulltext.fts5 import TOKENIZERS
from kronos.search.lexical import names_something
from kronos.settings import Settings
from tests.conftest import Clock, Opener
from tests.texts import EMOJI, FRAGMENTS, SIGNS, texts, words_of

NIGHTLY = settings.get_current_profile_name() == "nightly"
OTHERS = [
    "a note about lunch",
    "The C language, 1972.",
    "Ada keeps bees; 日记 и мёд.",
    "2 + 2 = 4 😀",
]

each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS)


@pytest.fixture
def made(tmp_path: Path, tokenizer: Any) -> Iterator[MemoryStore]:
    """A store of a tokenizer, with some texts."""
    options = Settings(tokenizer=tokenizer, durability="normal")
    with MemoryStore.open(tmp_path / "words", embedding_model="hash", settings=options) as store:
        store.add_many(OTHERS)
        yield store


def found(store: MemoryStore, question: str, mode: Any = "lexical") -> list[str]:
    return [hit.content for hit in store.search(question, mode=mode, limit=1000)]


# -- Every word of every text -------------------------------------------------------------------


@each_tokenizer
def test_every_word_of_every_text_finds_its_text(made: MemoryStore) -> None:
    @settings(
        max_examples=20_000 if NIGHTLY else 60,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(texts.filter(str.strip), min_size=1, max_size=3))
    def law(written: list[str]) -> None:
        ids = made.add_many(written)
        for id, text in zip(ids, written, strict=True):
            for word in words_of(text):
                check_finds(made, word, id)
        made.delete(ids)

    law()


def check_finds(store: MemoryStore, word: str, id: str) -> None:
    """A word finds a memory by words alone, and its words count where vectors are asked too."""
    normalize = unicodedata.normalize
    for question in dict.fromkeys([word, normalize("NFC", word), normalize("NFD", word)]):
        assert id in {hit.id for hit in store.search(question, mode="lexical", limit=1000)}
    hits = store.search(word, limit=1000, explain=True)
    assert next(hit for hit in hits if hit.id == id).shares["words"] > 0  # type: ignore[index]


@each_tokenizer
def test_what_people_write_is_found_among_others(made: MemoryStore) -> None:
    for fragment in FRAGMENTS:
        text = f"then {fragment} stood there ({fragment})"
        id = made.add(text)
        for word in words_of(text):
            check_finds(made, word, id)
        made.delete(id)


@each_tokenizer
def test_a_sign_that_no_text_holds_finds_nothing(made: MemoryStore) -> None:
    signs = [*SIGNS, *EMOJI]
    for sign in signs:
        if len([*read(sign, "porter")]) > 1:
            continue
        others = [other for other in signs if shape(other).isdisjoint(shape(sign))]
        ids = made.add_many(f"this is {other} for you" for other in others)
        assert found(made, sign) == []
        text = f"nice work {sign} again"
        ids.append(made.add(text))
        assert found(made, sign) == [text]
        assert found(made, sign, "hybrid")[0] == text
        made.delete(ids)


def shape(sign: str) -> set[str]:
    """What is seen of a sign."""
    seen = ("S", "P", "N")
    return {c for c in sign if unicodedata.category(c)[0] in seen and c not in "🏻🏼🏽🏾🏿"}


@pytest.mark.parametrize("model", ["hash", "mini"])
def test_fault_12_emoji_and_symbols_can_be_searched(tmp_path: Path, model: str) -> None:
    texts = [f"note {i} about lunch" for i in range(50)]
    texts += ["nice work 👍", "launch 🚀 done", "C++ compiler notes", "C# web team", "sum → 5 €"]
    with MemoryStore.open(tmp_path / "s", embedding_model=model, strict=True) as store:
        store.add_many(texts)
        first = {
            q: store.search(q, limit=1)[0].content for q in ("👍", "🚀", "C++", "C#", "→", "€")
        }
        assert first == {
            "👍": "nice work 👍",
            "🚀": "launch 🚀 done",
            "C++": "C++ compiler notes",
            "C#": "C# web team",
            "→": "sum → 5 €",
            "€": "sum → 5 €",
        }
        assert found(store, "🍕") == found(store, "⇒") == []
        if model == "hash":  # whose vectors know letters alone
            assert found(store, "🍕", "hybrid") == []


@each_tokenizer
def test_fault_10_words_of_scripts_without_spaces_are_found(made: MemoryStore) -> None:
    texts = {
        "北京是中国的首都，有很多历史建筑。": "北京 首都 历史建筑 史 中国的首都",
        "대한민국의 수도는 서울입니다.": "서울 대한민국 수도",
        "Use node.js v1.2.3, it is ok: $19.99 or 42": "v1.2.3 ok 19.99 $19.99 42 is node.js",
        "東京タワーは高い。": "東京 タワー タワ 高い",
        "กรุงเทพมหานครเป็นเมืองหลวง": "กรุงเทพ เมืองหลวง",
        "ວຽງຈັນເປັນນະຄອນຫຼວງ": "ວຽງຈັນ",
        "ភ្នំពេញជារាជធានី": "ភ្នំពេញ",
        "ရန်ကုန်မြို့": "ရန်ကုန်",
    }
    made.add_many([*texts])
    for text, words in texts.items():
        for word in words.split():
            assert found(made, word)[0] == text, word
    for word in ("北京", "首都", "历史建筑", "서울", "ok", "กรุงเทพ", "ភ្នំពេញ"):
        assert len(found(made, word)) == 1
    assert found(made, "东京") == found(made, "都首") == []


CHANGED_BY_NORMALISATION = {
    "The flat has 120 m² of floor.": "m²",
    "İstanbul is large.": "İstanbul",
    "eﬃcient ﬁnance report": "ﬁnance",
    "x₂ and H₂O": "H₂O",
    "за́мок стоит": "за́мок",
    "ẹ̀kọ́ ni": "ẹ̀kọ́",
    "ＫＸ４７ is wide": "ＫＸ４７",
    "add ½ of it": "½",
    unicodedata.normalize("NFD", "한국의 도시"): "한국",
}


@each_tokenizer
def test_fault_words_that_normalisation_changes_find_their_text(made: MemoryStore) -> None:
    made.add_many([*CHANGED_BY_NORMALISATION])
    for text, word in CHANGED_BY_NORMALISATION.items():
        assert found(made, word)[0] == text
    plain = {"m2": 0, "istanbul": 1, "finance": 2, "h2o": 3, "замок": 4, "eko": 5, "kx47": 6}
    for word, place in plain.items():
        assert found(made, word) == [[*CHANGED_BY_NORMALISATION][place]]


# -- What comes first ---------------------------------------------------------------------------


WHOLE = {
    "C++": ("we write C++ here", "we write C here", "A + B is here"),
    "C#": ("we write C# here", "we write C here", "issue # five here"),
    ".NET": ("the .NET team met", "the net income rose"),
    "v1.2.3": ("install v1.2.3 now", "install v1.2 now", "install v1.3.2 now"),
    "19.99": ("it costs 19.99 today", "it has 19 rooms and 99 doors"),
    "$19.99": ("it costs $19.99 today", "it costs 19.99 today", "it weighs 19 pounds"),
    "node.js": ("we use node.js here", "the node is js here"),
    "user@example.com": ("mail user@example.com now", "the user has an example, com"),
    "KX-4711": ("the part KX-4711 is in", "the part KX-4712 is in", "the part 4711 is in"),
    "snake_case_name": ("see snake_case_name there", "a name, a case, a snake"),
    "kronos/db/fulltext/fts5.py": (
        "open kronos/db/fulltext/fts5.py now",
        "open words.py of the db, kronos",
    ),
    "历史建筑": ("城里有历史建筑很多", "城里有建筑和历史很多"),
    "👩‍🚀": ("she is 👩‍🚀 now", "a 🚀 and a 👩 now"),
}


@each_tokenizer
@pytest.mark.parametrize("mode", ["lexical", "hybrid"])
def test_a_whole_word_comes_before_its_parts(made: MemoryStore, mode: str) -> None:
    for question, (whole, *parts) in WHOLE.items():
        ids = made.add_many([*parts, whole])
        assert found(made, question, mode)[0] == whole
        made.delete(ids)


@pytest.mark.parametrize("tokenizer", ["trigram"])
def test_trigrams_find_parts_of_words_and_the_shortest_words(made: MemoryStore) -> None:
    text = "The bookkeeper is ok with v2: a 42 % rise, Straßenbahn"
    made.add(text)
    for word in (
        "kkee",
        "book",
        "eeper",
        "ok",
        "v2",
        "is",
        "42",
        "%",
        "strassen",
        "enba",
        "with v2",
    ):
        assert text in found(made, word), word
    assert found(made, "oo") == found(made, "kk") == found(made, "bookie") == []


HOSTILE = [
    *("\"'", '" OR "a', "NEAR(a b)", "a*", "*", "^a", "content:a", "-", "{a}", "a" * 10_000),
    *(
        "北" * 10_000,
        "\u0301",
        "\u200d",
        "👍" * 1000,
        "+" * 10_000,
        "\x1a",
        "\ue000\ue82b",
        "\U0010ffff",
    ),
]


@each_tokenizer
def test_any_question_is_answered_and_none_is_syntax(made: MemoryStore) -> None:
    for question in HOSTILE:
        for mode in ("lexical", "hybrid"):
            found(made, question, mode)
        text = f"so {question} it was"
        id = made.add(text)
        assert text in found(made, question)
        made.delete(id)


def test_a_question_that_looks_like_a_sign_s_code_finds_no_sign(store: MemoryStore) -> None:
    (code,) = [word.text for word in read("→", "porter")]
    store.add("a → b")
    assert found(store, code) == []
    assert len(found(store, "→")) == 1


@pytest.mark.parametrize(
    ("question", "does"),
    [
        ("第3章", True),
        ("北京", False),
        ("the Eiffel tower", True),
        ("who is it", False),
        ("C3PO", True),
    ],
)
def test_names_and_numbers_are_known_in_every_script(question: str, does: bool) -> None:
    assert names_something(question) is does


# -- Writes, the past, and what is kept ---------------------------------------------------------

WRITTEN = {
    "北京是首都": "北京",
    "launch 🚀 done": "🚀",
    "H₂O and C++": "C++",
    "за́мок стоит": "замок",
}


@each_tokenizer
def test_edits_and_deletes_leave_no_words_behind(made: MemoryStore) -> None:
    ids = dict(zip(WRITTEN, made.add_many([*WRITTEN]), strict=True))
    for (text, word), other in zip(WRITTEN.items(), [*WRITTEN][::-1], strict=True):
        made.update(ids[text], content=f"now {other}")
        assert f"now {other}" in found(made, WRITTEN[other])
        assert text not in found(made, word)
        made.update(ids[text], content="plain now")
        assert {*found(made, WRITTEN[other])} <= {other, *OTHERS}
    made.upsert("北京 again", id=ids["北京是首都"])
    assert found(made, "北京") == ["北京 again"]
    made.delete([*ids.values()])
    assert all({*found(made, word)} <= {*OTHERS} for word in WRITTEN.values())
    assert made.maintenance.check().ok


@each_tokenizer
def test_the_past_is_found_by_its_words(tmp_path: Path, tokenizer: Any, clock: Clock) -> None:
    options = Settings(tokenizer=tokenizer)
    with MemoryStore.open(
        tmp_path / "s", embedding_model="hash", embedding_dim=32, settings=options, clock=clock
    ) as store:
        ids = store.add_many([*WRITTEN])
        before = clock.now
        clock.tick(10)
        store.delete(ids[:2])
        for id in ids[2:]:
            store.update(id, content="nothing of it")
        clock.tick(10)
        for text, word in WRITTEN.items():
            hits = store.search(word, as_of=before, mode="lexical")
            assert [hit.content for hit in hits] == [text]
            assert store.search(word, mode="lexical") == []
        assert store.maintenance.check().ok


def test_another_tokenizer_reads_all_texts_anew(open_store: Opener, clock: Clock) -> None:
    store = open_store()
    texts = [*CHANGED_BY_NORMALISATION, *WRITTEN, "it is ok"]
    ids = store.add_many(texts)
    before = clock.now
    clock.tick(1)
    store.update(ids[0], content="another text")
    for tokenizer in ("trigram", "porter", "unicode61", "trigram", None):
        store.maintenance.rebuild_fulltext(tokenizer)
        assert store.maintenance.check().ok
        for text, word in {**CHANGED_BY_NORMALISATION, **WRITTEN, "it is ok": "ok"}.items():
            hits = store.search(word, mode="lexical", as_of=before)
            assert text in [hit.content for hit in hits]
        assert found(store, "🚀") == ["launch 🚀 done"]


def test_an_export_and_a_backup_bring_the_words_back(open_store: Opener, tmp_path: Path) -> None:
    store = open_store()
    store.add_many([*WRITTEN])
    store.export_to(tmp_path / "all.jsonl")
    store.maintenance.backup(tmp_path / "kept.db")
    with MemoryStore.open(
        tmp_path / "other", embedding_model="hash", settings=Settings(tokenizer="trigram")
    ) as other:
        other.import_from(tmp_path / "all.jsonl")
        assert [found(other, word) for word in WRITTEN.values()] == [[text] for text in WRITTEN]
    MemoryStore(tmp_path / "third").maintenance.restore(tmp_path / "kept.db")
    with MemoryStore.open(tmp_path / "third", embedding_model="hash", embedding_dim=64) as third:
        assert [found(third, word) for word in WRITTEN.values()] == [[text] for text in WRITTEN]


def test_what_is_recovered_has_its_words_whatever_became_of_the_folds(tmp_path: Path) -> None:
    with MemoryStore.open(tmp_path, embedding_model="hash", embedding_dim=32) as store:
        ids = store.add_many([*WRITTEN])
        store.update(ids[0], content="北京 again")
        with store._session.writer() as repository:
            for table in ("memories", "versions"):
                repository.connection.exec_driver_sql(
                    f"UPDATE {table} SET folded = CAST(x'fffe' AS TEXT) WHERE folded NOT NULL"
                )
    assert MemoryStore(tmp_path).maintenance.recover().memories == len(WRITTEN)
    with MemoryStore.open(tmp_path, embedding_model="hash", embedding_dim=32) as store:
        assert found(store, "🚀") == ["launch 🚀 done"]
        assert found(store, "北京") == ["北京 again"]
        assert store.maintenance.check().ok
        assert store.history(ids[0])[0].memory.content == "北京是首都"


def test_texts_that_another_program_wrote_are_found_wrong_and_read_anew(store: MemoryStore) -> None:
    store.add_many([*WRITTEN])
    with store._session.writer() as repository:
        repository.connection.exec_driver_sql("UPDATE memories SET folded = NULL")
    (problem,) = store.maintenance.check().problems
    assert (problem.kind, problem.repaired) == ("fulltext", False)
    assert "4 texts" in problem.detail
    assert "kronos doctor --repair" in problem.detail
    (problem,) = store.maintenance.check(repair=True).problems
    assert problem.repaired
    assert store.maintenance.check().ok
    assert found(store, "🚀") == ["launch 🚀 done"]


def test_compact_leaves_nothing_of_a_deleted_fold(open_store: Opener, tmp_path: Path) -> None:
    store = open_store()
    kept, gone = store.add_many(["北京是首都", "세종대왕은 왕이다"])
    store.delete(gone)
    store.maintenance.compact()
    store.close()
    data = (tmp_path / "store" / "kronos.db").read_bytes()
    assert "세종대왕".encode() not in data
    assert "종대".encode() not in data
    assert "是首".encode() in data
    assert kept
