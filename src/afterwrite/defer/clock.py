"""What a body calls the time: functions that a search path reaches, and words of the grammar that none does."""

from __future__ import annotations

from afterwrite.scan.tokens import tokens

CLOCK = "afterwrite_clock"

_WORDS = {
    "current_timestamp": "timestamptz",
    "localtimestamp": "timestamp",
    "current_date": "date",
    "current_time": "timetz",
    "localtime": "time",
}
_FUNCTIONS = frozenset({"now", "transaction_timestamp", "statement_timestamp", "clock_timestamp"})


def on_original_clock(source: str) -> str:
    """The same SQL, with CURRENT_TIMESTAMP and its kin, and ``pg_catalog.now()``, asking the original clock.

    >>> on_original_clock("new.at > current_date and t.current_date = 'current_date'")
    "new.at > (afterwrite_clock.now()::date) and t.current_date = 'current_date'"
    """
    words = list(tokens(source))
    pieces: list[str] = []
    done = 0
    for index, word in enumerate(words):
        if word.kind != "word":
            continue
        name = word.text.lower()
        before = words[index - 1].text.lower() if index else ""
        following = [after.text.lower() for after in words[index + 1 : index + 4]]
        if name in _WORDS and before not in (".", "as"):
            type_name, end = _WORDS[name], word.end
            if following[:1] == ["("] and following[2:] == [")"]:  # a precision
                type_name, end = f"{type_name}({following[1]})", words[index + 3].end
            pieces += [source[done : word.start], f"({CLOCK}.now()::{type_name})"]
            done = end
        elif name == "pg_catalog" and following[:1] == ["."] and following[1:2] and following[1] in _FUNCTIONS:
            pieces += [source[done : word.start], CLOCK]
            done = word.end
    return "".join([*pieces, source[done:]])
