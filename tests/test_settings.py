"""A valid option is accepted, and any other value is refused by name."""

from __future__ import annotations

import math
from dataclasses import fields
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos import Ranking, Settings
from kronos.errors import ConfigurationError, InputError

OPTIONS: dict[str, Any] = {option.name: option.default for option in fields(Settings)}
WHOLE = [name for name, default in OPTIONS.items() if type(default) is int]
NUMBERS = [name for name, default in OPTIONS.items() if type(default) is float]
SWITCHES = [name for name, default in OPTIONS.items() if type(default) is bool]
TEXTS = [name for name, default in OPTIONS.items() if type(default) is str]

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.complex_numbers(),
    st.fractions(),
    st.lists(st.integers(), max_size=2),
    st.just({}),
    st.sampled_from([2.0, 1.5, 10**30, -(10**30), math.inf, math.nan, "7", Fraction(3, 2)]),
)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [1.5, 2.0, True, False, "3", None, math.inf, -1, 10**30])
def test_a_count_must_be_a_whole_number(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} must be a whole number") as caught:
        Settings(**{name: value})
    assert caught.value.field == name


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, math.nan, True, "3", None, -1.0, 1e308, 10**400]
)
def test_a_duration_must_be_finite(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} must be a number of seconds") as caught:
        Settings(**{name: value})
    assert caught.value.field == name


MAY_BE_ZERO = {"embed_retry_s", "search_retry_s"}


@pytest.mark.parametrize("name", [name for name in NUMBERS if name not in MAY_BE_ZERO])
def test_a_duration_must_be_above_zero(name: str) -> None:
    with pytest.raises(ConfigurationError, match="seconds above 0"):
        Settings(**{name: 0})  # type: ignore[arg-type]


def test_the_retry_times_may_be_zero() -> None:
    settings = Settings(embed_retry_s=0, search_retry_s=0.0)
    assert (settings.embed_retry_s, settings.search_retry_s) == (0, 0)


@given(name=st.sampled_from([*OPTIONS]), value=anything)
def test_an_accepted_value_has_the_type_of_its_option(name: str, value: Any) -> None:
    refused = None
    try:
        taken = getattr(Settings(**{name: value}), name)
    except ConfigurationError as exc:
        refused = exc
    if refused is not None:
        assert refused.field == name
        assert name in str(refused)
        return
    assert taken is value
    if name in WHOLE:
        assert type(taken) is int
        assert (name == "keep_spaces") <= taken + 1 <= 2**31
    elif name in NUMBERS:
        assert type(taken) in (int, float)
        assert 0 < taken <= 1e6 or (taken == 0 and name in MAY_BE_ZERO)
    else:
        assert type(taken) is (bool if name in SWITCHES else str)


@given(name=st.sampled_from([*WHOLE, *NUMBERS, *SWITCHES]), text=st.text(max_size=12))
def test_an_accepted_variable_has_the_type_of_its_option(name: str, text: str) -> None:
    variable = f"KRONOS_{name.upper()}"
    refused = None
    try:
        taken = getattr(Settings.from_env({variable: text}), name)
    except ConfigurationError as exc:
        refused = exc
    if refused is not None:
        assert name in str(refused) or variable in str(refused)
        return
    assert type(taken) is type(OPTIONS[name])


@pytest.mark.parametrize("text", ["inf", "nan", "1e400", "-3", "0"])
def test_a_variable_must_be_within_the_limits(text: str) -> None:
    with pytest.raises(ConfigurationError, match="lease_s must be a number of seconds"):
        Settings.from_env({"KRONOS_LEASE_S": text})
    with pytest.raises(ConfigurationError, match="a whole number"):
        Settings.from_env({"KRONOS_BATCH_SIZE": "2.5"})


def test_the_defaults_are_valid() -> None:
    assert Settings(**OPTIONS) == Settings()
    assert Settings(keep_spaces=0).keep_spaces == 0
    assert Settings(busy_timeout_s=5).busy_timeout_s == 5


# -- Rankings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"half_life": 1e-310}, "half_life"),
        ({"half_life": 1e300}, "half_life"),
        ({"half_life": "9" * 400 + "d"}, "half_life"),
        ({"half_life": math.nan}, "half_life"),
        ({"similarity": 1.7e308}, "similarity"),
        ({"recency": 1.7e308}, "recency"),
        ({"importance": 1e7}, "importance"),
        ({"namespaces": {"a": -1.7e308}}, "namespaces.a"),
        ({"namespaces": {"a": math.inf}}, "namespaces.a"),
        ({"diversity": 1.5}, "diversity"),
        ({"diversity": -0.1}, "diversity"),
    ],
)
def test_a_ranking_beyond_its_limits_is_refused_by_field(options: Any, field: str) -> None:
    with pytest.raises(InputError, match=f"ranking.{field} must be") as caught:
        Ranking(**options)
    assert caught.value.field == f"ranking.{field}"


@pytest.mark.filterwarnings("error")
@given(
    weights=st.tuples(*[st.floats(0, 1e6)] * 3),
    gain=st.floats(-1e6, 1e6),
    half_life=st.floats(1e-6, 1e15),
    age=st.integers(-(10**15), 6 * 10**16),
)
def test_an_accepted_ranking_gives_finite_shares(
    weights: tuple[float, ...], gain: float, half_life: float, age: int
) -> None:
    import numpy as np

    from kronos.repository.memory_rows import Signals

    ranking = Ranking(
        similarity=weights[0],
        recency=weights[1],
        importance=weights[2],
        namespaces={"a": gain},
        half_life=half_life,
    )
    times = {name: np.array([0.0, 1e15]) for name in ("created", "updated", "accessed")}
    shares = ranking.shares(Signals(times, np.array([0.0, 1.0]), ["a", "a/b"]), age)
    assert all(np.isfinite(share).all() for share in shares.values())
    assert math.isfinite(sum(map(float, map(np.sum, shares.values()))) + weights[0] * 1e4)
    assert math.isfinite(ranking.most_gain)
