"""The tree is as drawn, every end has its code, and no error is raised without a cure in reach."""

from __future__ import annotations

import re

import pytest

from streamal import errors
from streamal.errors import BadRecord, CommitRefused, StreamalError, exit_codes
from streamal.service.supervisor import FINAL_CODES

TREE = [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, StreamalError)]


def drawn() -> dict[str, str]:
    """Return the parent of each error in the drawing, by the depth of its line."""
    parents, path = {}, {}
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"^    ([│├└─ ]*)([A-Z]\w+)", line):
            depth = len(found[1]) // 4
            path[depth] = found[2]
            if depth:
                parents[found[2]] = path[depth - 1]
    return parents


def test_the_tree_is_as_drawn() -> None:
    actual = {error.__name__: error.__bases__[0].__name__ for error in TREE if error is not StreamalError}
    assert drawn() == actual


def test_codes_are_told_apart() -> None:
    codes = [vars(error)["exit_code"] for error in TREE if "exit_code" in vars(error)]
    assert len(codes) == len(set(codes))
    assert 0 not in codes
    assert all(1 <= code < 64 for code in codes)


def test_each_code_says_what_it_means_and_whether_to_start_again() -> None:
    found = exit_codes()
    assert found.keys() == {error.exit_code for error in TREE}
    assert len({error.ending for error in found.values()}) == len(found)
    assert [error.__name__ for error in TREE if error.ending != found[error.exit_code].ending] == []
    assert {code for code, error in found.items() if error.restart == "no"} == FINAL_CODES


@pytest.mark.parametrize("error", TREE, ids=lambda error: error.__name__)
def test_each_is_an_error_of_ours_with_its_reason(error: type[StreamalError]) -> None:
    assert error.__doc__
    assert error.retriable is False
    made = error("some_reason", "what came") if error is BadRecord else error("what came")
    with pytest.raises(StreamalError, match="what came"):
        raise made


def test_a_refused_record_has_a_reason_for_machines() -> None:
    assert BadRecord("too_large", "12 bytes").reason == "too_large"
    assert str(BadRecord("too_large", "12 bytes")) == "12 bytes"


def test_a_refused_commit_may_be_tried_again_if_it_says_so() -> None:
    assert CommitRefused("rebalance", retriable=True).retriable
    assert not CommitRefused("fenced").retriable
    assert not CommitRefused.retriable
