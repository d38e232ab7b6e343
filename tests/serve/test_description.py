"""The description against the server: what schemathesis thinks of is answered as it says, and never by 5xx."""

from __future__ import annotations

from typing import Any

import pytest
from api_fuzz import attack
from serving import an_event, key, serving, store, write

from afterwrite.settings import Settings

# More of it: ./run python -m tests.serve.api_fuzz 200
_EXAMPLES = 1


# The server is of this process, and its pauses are random: Hypothesis takes that for a strategy's own doing.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning")
def test_every_operation_answers_what_it_says_to_whatever_it_is_asked(server: Any) -> None:
    with store(server) as dsn:
        write(dsn, *map(an_event, range(20)))
        with serving(Settings(dsn=dsn, serve_auth="required", serve_rate=0)) as client:
            told = dict(attack(client.url, key(dsn, "fuzz", "admin"), _EXAMPLES))
            paths = client.get("/openapi.json").json["paths"]
    operations = sum(len(item) for item in paths.values())
    assert len(told) == operations - 2  # but the stream, and the description itself
    assert all(told.values())
