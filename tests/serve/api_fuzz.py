"""The API against its own description: requests of every kind that schemathesis thinks of, and no answer of 5xx.

``./run python -m tests.serve.api_fuzz [EXAMPLES]`` does it for long, on a server of its own; the suite does a little.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import SkipTest

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
# A stream does not end, which is what a request of it waits for.
_LEFT_OUT = "/v1/feed"


def attack(url: str, key: str | None, examples: int) -> Iterator[tuple[str, int]]:
    """Ask of every operation so many things that fit, and as many that do not; yields its name and how many it were.

    Raises schemathesis' own failure, which says how to ask that again.
    """
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == _LEFT_OUT:
            continue
        yield operation.label, sum(_ask(operation, mode, headers, examples) for mode in GenerationMode)


def _ask(operation: Any, mode: GenerationMode, headers: dict[str, str], examples: int) -> int:
    asked = 0

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        nonlocal asked
        asked += 1
        case.call_and_validate(headers=headers, checks=CHECKS)

    with suppress(Unsatisfiable, SkipTest):  # nothing can be wrong with a request that says nothing
        ask()
    return asked


def main() -> None:
    """Attack a server over a store with something in it."""
    sys.path.insert(0, str(Path(__file__).parent))
    from serving import an_event, key, serving, store, write

    from afterwrite.postgres.embedded import embedded_server
    from afterwrite.settings import Settings

    examples = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with embedded_server(settings={"fsync": "off"}) as server, store(server) as dsn:
        write(dsn, *map(an_event, range(500)))
        with serving(Settings(dsn=dsn, serve_auth="required", serve_rate=0)) as client:
            total = 0
            for name, asked in attack(client.url, key(dsn, "fuzz", "admin"), examples):
                total += asked
                print(f"{asked:6,}  {name}", flush=True)
    print(f"{total:6,}  requests, no answer of 5xx, and none that the description does not tell of")


if __name__ == "__main__":
    main()
