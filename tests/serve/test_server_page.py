"""docs/server.md: every setting with its default, every metric, and a curl that does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
from serving import key, serving, store

from afterwrite.serve.metrics import Metrics, Snapshot
from afterwrite.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")


def test_every_setting_is_told_with_its_default() -> None:
    told = dict(re.findall(r"^\| `(serve_\w+)` \|([^|]*)\|", PAGE, re.MULTILINE))
    fields = {name: field.default for name, field in Settings.model_fields.items() if name.startswith("serve_")}
    assert told.keys() == fields.keys()
    for name, default in fields.items():
        said = told[name].strip()
        if isinstance(default, (int, float)) and not said.endswith("MB"):
            assert float(said) == default, name
        elif isinstance(default, str):
            assert said.startswith(default), name
        elif default in (None, ()):
            assert not said or not said[0].isdigit(), name
    assert Settings.model_fields["serve_body_bytes"].default == 16 << 20


def test_every_metric_is_told() -> None:
    metrics = Metrics()
    known = set(re.findall(r"^# HELP (\w+)", metrics.render(Snapshot()).decode(), re.MULTILINE))
    cells = re.findall(
        r"`(?:afterwrite)?(_\w+)(?:\{[\w,]+\})?`", PAGE.partition("## Metrics")[2].partition("## Settings")[0]
    )
    told = {f"afterwrite{cell}" for cell in cells}
    missing = {name for name in known if not name.endswith(("_created", "_build_info")) and name not in told}
    assert missing == set()


def test_what_is_handed_in_by_the_pages_curl_is_stored(server: Any) -> None:
    body = re.search(r"-d '\n(\{.*?\})'\n", PAGE, re.DOTALL)
    assert body is not None
    with store(server) as dsn, serving(Settings(dsn=dsn, serve_auth="required")) as client:
        asking = client.with_key(key(dsn, "page", "admin"))
        answer = asking.post("/v1/activities", msgspec.json.decode(body[1]))
        assert answer.json["stored"] == 1
        id = answer.json["results"][0]["id"]
        assert asking.get(f"/v1/activities/{id}").json["entity_id"] == "12"
        assert asking.get("/v1/activities?q=category:security&limit=2").status == 200
