"""The alignment of a conversation with its skeleton."""

import pytest

from ftdist.data.skeleton import Part, align

ARGUMENTS = [(number, "call 0 arguments") for number in range(4)]


@pytest.mark.parametrize(
    "parts, text, expected",
    [
        ([Part("<"), Part("", ARGUMENTS[0]), Part(">")], "<a>", [1, 2, 3]),
        ([Part("<"), Part("", ARGUMENTS[0]), Part(">")], "<a>b>", [1, 4, 5]),
        ([Part("", ARGUMENTS[0]), Part("; "), Part("", ARGUMENTS[1]), Part("; ."), ], "a; b; c; .", [1, 3, 7, 10]),
        ([Part("", ARGUMENTS[0]), Part(";"), Part("", (9, "content"))], "a;b;known", [3, 4, 9]),
        ([Part("", ARGUMENTS[0]), Part("", ARGUMENTS[1])], "ab", [2, 2]),
        ([Part("<"), Part("", ARGUMENTS[0]), Part(">")], "<a", None),
        ([Part("", ARGUMENTS[0]), Part(";"), Part("", (9, "content"))], "a;b;other", None),
        ([Part("a"), Part("b")], "abc", None),
    ],
)  # fmt: skip
def test_a_field_without_a_known_text_ends_where_everything_after_it_fits(
    parts: list[Part], text: str, expected: list[int] | None
) -> None:
    found = align(parts, text, {(9, "content"): "known"})
    assert (None if found is None else found.ends) == expected


def test_a_chat_can_have_any_number_of_calls() -> None:
    parts = [part for number in range(3000) for part in (Part("", (number, "call 0 arguments")), Part(";"))]
    found = align(parts, "x;" * 3000, {})
    assert found is not None and found.ends == list(range(1, 6001))


def test_a_text_that_does_not_fit_is_given_up_soon() -> None:
    parts = [part for key in ARGUMENTS * 5 for part in (Part("", key), Part(";"))]
    assert align([*parts, Part("end")], "x;" * 60, {}) is None
