"""The API of version 1: activity as JSON."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import MediaType, Request, Response, get
from litestar.datastructures import State
from litestar.params import Parameter

from afterwrite.serve.auth import Caller
from afterwrite.serve.tenancy import reading
from afterwrite.store.reader import StoredActivity


def as_json(activity: StoredActivity) -> dict[str, object]:
    """An activity as the API, the feed and ``afterwrite tail --json`` give it; ``msgspec.json.encode`` writes it."""
    values = msgspec.structs.asdict(activity)
    for name in ("before", "after", "metadata"):
        text = values[name]
        values[name] = None if text is None else msgspec.Raw(text.encode())
    values["commit_lsn"] = None if activity.commit_lsn is None else str(activity.commit_lsn)
    return values


@get("/v1/activities")
async def list_activities(
    request: Request[Caller, None, State],
    caller: Caller,
    q: str = "",
    limit: Annotated[int, Parameter(ge=1, le=500)] = 50,
) -> Response[bytes]:
    """The newest activity that the query asks for."""
    # Late until that room is there: the server can be started meanwhile.
    from afterwrite.search.find import find
    from afterwrite.search.query import parse

    async with reading(request.app.state, caller) as db:
        page = await find(db, parse(q), limit=limit)
    body = msgspec.json.encode({"items": [as_json(each) for each in page.items]})
    return Response(body, media_type=MediaType.JSON)


routes = [list_activities]
