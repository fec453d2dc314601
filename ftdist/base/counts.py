"""Numbers of things in messages: ``1 rank``, ``2 ranks``."""


def count(number: int, thing: str, things: str = "") -> str:
    """Return a number of things in words, with the right form of the noun.

    Args:
        number: how many there are.
        thing: the noun for one.
        things: the noun for any other number. By default ``thing`` with an s.
    """
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"
