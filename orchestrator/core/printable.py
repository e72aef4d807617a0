"""Text of somebody else's, for a terminal or a log: nothing in it moves the cursor, ends a line or turns text round."""


def printable(text: str) -> str:
    """The text with control, format and other unprintable characters written as Python escapes them (``\\x1b``)."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
