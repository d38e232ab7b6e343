"""Where authentication is on: without a key nobody sees a page, and a tenant's key opens that tenant's alone."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import browsing
import httpx
import telling

from afterwrite.postgres import connect
from afterwrite.serve.keys import make_key
from afterwrite.settings import Settings


def test_a_key_opens_the_pages_for_a_session_and_a_tenants_key_its_own_activity(installed_dsn: str) -> None:
    teller = telling.Teller(3, datetime.now(UTC) - timedelta(minutes=1))
    told = [
        [teller.event("door.opened", "building", summary=f"{tenant} opens", tenant_id=tenant)]
        for tenant in ("north", "south")
    ]

    async def prepare() -> tuple[str, str]:
        await telling.fill(installed_dsn, told)
        async with connect(installed_dsn) as db:
            _, reader = await make_key(db, "reader", ["read"])
            _, north = await make_key(db, "north", ["read"], tenant="north")
        return reader, north

    reader, north = asyncio.run(prepare())
    with (
        browsing.serving(Settings(dsn=installed_dsn, serve_auth="required")) as url,
        httpx.Client(base_url=url, headers={"accept": "text/html"}) as visitor,
    ):
        for path in ("/", "/search?q=kind:event", "/overview", "/migration", "/health", f"/activity/{told[0][0].id}"):
            answer = visitor.get(path)
            assert (answer.status_code, answer.headers["location"][:7]) == (303, "/login?")
        refused = visitor.post("/login", data={"key": "aw_000000000000_nonsense", "next": "/"})
        assert refused.status_code == 401
        assert "set-cookie" not in refused.headers
        assert 'action="/login"' in refused.text

        entered = visitor.post("/login", data={"key": reader, "next": "/search?q=action:door.opened"})
        assert (entered.status_code, entered.headers["location"]) == (303, "/search?q=action:door.opened")
        cookie = entered.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert reader not in cookie
        found = visitor.get("/search?q=action:door.opened").text
        assert "north opens" in found
        assert "south opens" in found
        assert visitor.get("/health").status_code == 200

        assert visitor.post("/logout").status_code == 303
        assert visitor.get("/search").status_code == 303
        visitor.post("/login", data={"key": north, "next": "/"})
        for path in ("/", "/search?q=action:door.opened"):
            page = visitor.get(path).text
            assert "north opens" in page
            assert "south opens" not in page
            assert 'href="/migration"' not in page
        assert visitor.get(f"/activity/{told[1][0].id}").status_code == 404
        assert visitor.get("/overview").status_code == 200
        assert "south" not in visitor.get("/search/export", params={"q": "action:door.opened"}).text
        for path in ("/migration", "/health"):
            assert visitor.get(path).status_code == 403
        kept = visitor.post("/views", data={"name": "Doors", "query": "action:door.opened"})
        assert kept.status_code == 303
        assert "Doors" in visitor.get("/search").text
