from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from river.feature_extraction import TFIDF

from streamal.learning.encoding import MAX_CATEGORY, OTHER, Encoding, Indicators, Words
from streamal.messages import Features

values = st.none() | st.booleans() | st.text(max_size=4) | st.integers(-(2**53), 2**53) | st.floats(-1e100, 1e100)
mixed = st.dictionaries(st.text(max_size=3), values, max_size=6)


def test_numbers_are_passed_on_as_they_are() -> None:
    features: Features = {"a": 1.5, "b": 2}
    assert Indicators().encode(features) is features


def test_only_the_shown_category_has_a_sparse_column() -> None:
    encoding = Indicators()
    encoding.learn({"city": "Oslo"})
    encoding.learn({"city": "Rome"})
    assert encoding.encode({"city": "Rome", "on": False}) == {"city=Rome": 1.0, "on": 0.0}


def test_every_admitted_category_has_a_dense_column() -> None:
    encoding = Indicators(dense=True)
    encoding.learn({"city": "Oslo"})
    encoding.learn({"city": "Rome"})
    assert encoding.encode({"city": "Rome"}) == {"city=Oslo": 0.0, "city=Rome": 1.0}
    assert encoding.encode({"city": "Paris"}) == {"city=Oslo": 0.0, "city=Rome": 0.0}
    assert encoding.encode({"city": None}) == {}


@pytest.mark.parametrize("dense", [False, True])
def test_categories_beyond_the_limit_share_one_column(dense: bool) -> None:
    encoding = Indicators(dense=dense, limit=2)
    for index in range(1_000):
        encoding.learn({"city": f"c{index}"})
    shown = encoding.encode({"city": "c999"})
    assert {name for name, value in shown.items() if value} == {f"city={OTHER}"}
    assert len(shown) == (3 if dense else 1)
    assert encoding.encode({"city": "c1"})["city=c1"] == 1.0


def test_free_text_is_no_category() -> None:
    encoding = Indicators()
    assert encoding.learn({"note": "x" * (MAX_CATEGORY + 1)}) == {f"note={OTHER}": 1.0}


@pytest.mark.parametrize("odd", ["x" * (MAX_CATEGORY + 1), OTHER])
def test_one_odd_string_does_not_keep_others_from_becoming_categories(odd: str) -> None:
    encoding = Indicators(limit=2)
    for city in (odd, "Oslo", "Rome", "Bern"):
        encoding.learn({"city": city})
    found = [encoding.encode({"city": city}) for city in ("Oslo", "Rome", "Bern", odd)]
    assert found == [{f"city={city}": 1.0} for city in ("Oslo", "Rome", OTHER, OTHER)]


@pytest.mark.parametrize("encoding", [Indicators(), Indicators(dense=True), Words(), Words(on="a", tfidf=True)])
@given(learned=st.lists(mixed, max_size=4), asked=st.lists(mixed, max_size=4))
def test_encoding_changes_nothing_and_gives_numbers(
    encoding: Encoding, learned: list[Features], asked: list[Features]
) -> None:
    encoding = copy.deepcopy(encoding)
    for features in learned:
        encoding.learn(features)
    state = pickle.dumps(encoding)
    for features in [*asked, *learned]:
        columns = encoding.encode(features)
        assert all(isinstance(value, int | float) for value in columns.values())
        assert columns == encoding.encode(features)
    assert pickle.dumps(encoding) == state


def test_tfidf_is_rivers() -> None:
    documents = ["a late refund for a late parcel", "parcel is late", "Réfund now now", ""]
    words, river = Words(tfidf=True), TFIDF()
    for document in documents:
        river.learn_one(document)
        expected = {f"={word}": weight for word, weight in river.transform_one(document).items()}
        assert words.learn({"text": document}) == pytest.approx(expected)


def test_text_is_one_feature_or_all_strings() -> None:
    features: Features = {"title": "Red bus", "place": "Oslo", "size": 2.0}
    assert Words().learn(features) == {"size": 2.0, "=red": 1, "=bus": 1, "=oslo": 1}
    assert Words(on="title").learn(features) == {"place=Oslo": 1.0, "size": 2.0, "=red": 1, "=bus": 1}


def test_words_beyond_the_limit_are_left_out() -> None:
    words = Words(limit=2)
    assert words.learn({"text": "one two three"}) == {"=one": 1, "=two": 1}
    assert words.encode({"text": "three two"}) == {"=two": 1}
