"""Text of somebody else's, for a terminal or a log: nothing in it moves the cursor, ends a line or turns text round."""

import re

_KEY = re.compile(r"[0-9a-fA-F]{64}|[A-Za-z0-9+/]{43}=")
"""32 bytes in hexadecimal digits or in base64."""


def printable(text: str) -> str:
    """The text with control, format and other unprintable characters written as Python escapes them (``\\x1b``)."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def without_keys(text: str) -> str:
    """The text without what may be a secret key, which somebody wrote where its place belongs."""
    return _KEY.sub("(what may be a key)", text)
