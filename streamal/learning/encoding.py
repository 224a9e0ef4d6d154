"""Mixed JSON features as the numeric columns that River's estimators eat.

Numbers stay, booleans become 0.0 or 1.0, a string becomes the indicator column `name=value`, and null means missing. No
estimator gets a string, trees included: River's nominal splitters keep categories in sets, whose order depends on the
process's hash seed, so ties would split two workers' trees apart; and a feature that is a number today and a string
tomorrow would make them raise. An encoding is `dense` where a missing column is not the same as 0 (trees, naive Bayes).

Categories are admitted in the order of learning, up to a limit per feature; the rest share the column `name=<other>`.
Predicting admits nothing, so random strings cost no memory, and what is admitted is part of the model's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log, sqrt
from typing import Any, Final, Protocol

from river.feature_extraction import BagOfWords

from streamal.learning.moments import REAL
from streamal.messages import Features

Columns = Mapping[str, float]

MAX_CATEGORIES: Final = 1_000
"""Sparse indicator columns per feature; each costs a weight per class."""
MAX_DENSE_CATEGORIES: Final = 32
"""Dense indicator columns per feature; each costs work in every instance."""
MAX_CATEGORY: Final = 256
"""Characters; a longer string is free text, not a category, and keeping it would cost memory."""
MAX_WORDS: Final = 50_000
"""Words with a weight of their own; later ones are left out."""
OTHER: Final = "<other>"
TOKENS: Final = BagOfWords()
"""Splits text into words; it has no state, and the functions inside are kept out of a model's snapshot."""


class Encoding(Protocol):
    """Features to columns, with a state that only learning changes."""

    def encode(self, features: Features) -> Columns:
        """Return the columns of an instance that is predicted; changes nothing. Called per instance."""

    def learn(self, features: Features) -> Columns:
        """Admit what is new in a labelled example, and return its columns."""


class Indicators:
    """One indicator column per admitted category of each string feature.

    >>> encoding = Indicators()
    >>> encoding.learn({"amount": 3.5, "city": "Oslo", "known": True, "age": None})
    {'amount': 3.5, 'city=Oslo': 1.0, 'known': 1.0}
    >>> encoding.encode({"amount": 3.5, "city": "Rome"})
    {'amount': 3.5}
    """

    def __init__(self, *, dense: bool = False, limit: int | None = None) -> None:
        self.dense = dense
        self.limit = limit or (MAX_DENSE_CATEGORIES if dense else MAX_CATEGORIES)
        self._categories: dict[str, dict[str, str]] = {}

    def encode(self, features: Features) -> Columns:
        """Return the columns of an instance that is predicted; an all-numeric one is returned as it is."""
        if REAL.issuperset(map(type, features.values())):
            return features  # type: ignore[return-value]  # the test above is not one mypy follows
        columns: dict[str, float] = {}
        for name, value in features.items():
            if isinstance(value, bool):
                columns[name] = 1.0 if value else 0.0
            elif isinstance(value, str):
                self._indicate(name, value, columns)
            elif value is not None:
                columns[name] = value
        return columns

    def learn(self, features: Features) -> Columns:
        """Admit the categories that are new in a labelled example, and return its columns."""
        for name, value in features.items():
            if isinstance(value, str):
                self._admit(name, value)
        return self.encode(features)

    def _admit(self, name: str, value: str) -> None:
        known = self._categories.setdefault(name, {})
        if value in known:
            return
        if len(value) > MAX_CATEGORY or len(known) - (OTHER in known) >= self.limit:
            value = OTHER
        known[value] = f"{name}={value}"

    def _indicate(self, name: str, value: str, columns: dict[str, float]) -> None:
        known = self._categories.get(name, {})
        column = known.get(value) or known.get(OTHER)
        if self.dense:
            columns.update(dict.fromkeys(known.values(), 0.0))
        if column:
            columns[column] = 1.0


class Words:
    """Words of one text feature, or of all string features joined, as counts or TF-IDF; other features as indicators.

    Words are River's `BagOfWords` tokens (lower case, no accents), in columns `=word`; TF-IDF is River's,
    L2-normalised.

    >>> Words().learn({"title": "Late, late refund", "amount": 9.0})
    {'amount': 9.0, '=late': 2, '=refund': 1}
    """

    def __init__(self, *, on: str = "", tfidf: bool = False, limit: int = MAX_WORDS) -> None:
        self.on = on
        self.tfidf = tfidf
        self.limit = limit
        self._rest = Indicators()
        self._documents = 0
        self._frequencies: dict[str, int] = {}

    def encode(self, features: Features) -> Columns:
        """Return the columns of an instance that is predicted; words never learned are left out."""
        text, rest = self._split(features)
        return {**self._rest.encode(rest), **self._weigh(self._count(text))}

    def learn(self, features: Features) -> Columns:
        """Admit the words and categories that are new in a labelled example, and return its columns."""
        text, rest = self._split(features)
        self._documents += 1
        counts = self._count(text)
        for word in counts:
            if word in self._frequencies or len(self._frequencies) < self.limit:
                self._frequencies[word] = self._frequencies.get(word, 0) + 1
        return {**self._rest.learn(rest), **self._weigh(counts)}

    def _split(self, features: Features) -> tuple[str, dict[str, Any]]:
        texts, rest = [], {}
        for name, value in features.items():
            if isinstance(value, str) and (not self.on or name == self.on):
                texts.append(value)
            else:
                rest[name] = value
        return " ".join(texts), rest

    def _count(self, text: str) -> Mapping[str, int]:
        counts: Mapping[str, int] = TOKENS.transform_one(text)
        return counts

    def _weigh(self, counts: Mapping[str, int]) -> dict[str, float]:
        known = {word: count for word, count in counts.items() if word in self._frequencies}
        if not self.tfidf:
            return {f"={word}": count for word, count in known.items()}
        total = sum(counts.values())
        weights = {
            word: count / total * (log((1 + self._documents) / (1 + self._frequencies[word])) + 1)
            for word, count in known.items()
        }
        norm = sqrt(sum(weight**2 for weight in weights.values()))
        return {f"={word}": weight / norm for word, weight in weights.items()}
