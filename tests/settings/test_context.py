"""The ambient context: merging, every kind of function, tasks, threads, and what PostgreSQL could not keep."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest

from afterwrite.context import (
    LONGEST_WORD,
    Context,
    Later,
    adopt,
    amend,
    bind,
    carry,
    current,
    decode_context,
    encode_context,
    here,
)


def test_bindings_nest_and_merge_and_none_takes_away() -> None:
    assert current() == Context()
    with bind(actor="user:42", tenant="acme", settings={"a": "1", "b": "2"}) as outer:
        assert (
            outer
            == current()
            == Context(actor_id="user:42", actor_type="user", tenant_id="acme", settings={"a": "1", "b": "2"})
        )
        with bind(reason="refund", tenant=None, settings={"b": None, "c": "3"}):
            assert current() == Context(
                actor_id="user:42", actor_type="user", reason="refund", settings={"a": "1", "c": "3"}
            )
            with bind(actor=None, settings=None):
                assert current() == Context(reason="refund")
        assert current() is outer
    assert current() == Context()


def test_the_type_of_an_actor_is_its_own() -> None:
    with bind(actor="user:42"):
        with bind(actor="7"):
            assert (current().actor_id, current().actor_type) == ("7", None)
        with bind(actor="urn:x:1", actor_type="service"):
            assert (current().actor_id, current().actor_type) == ("urn:x:1", "service")
        with bind(actor_type="admin"):
            assert (current().actor_id, current().actor_type) == ("user:42", "admin")


def test_a_number_or_a_uuid_alone_is_a_users_and_a_text_stands_as_it_is() -> None:
    with bind(actor=UUID(int=7)):
        assert (current().actor_id, current().actor_type) == (f"user:{UUID(int=7)}", "user")
        with bind(actor=7, actor_type="admin"):
            assert (current().actor_id, current().actor_type) == ("user:7", "admin")
            with bind(actor="cron"):
                assert (current().actor_id, current().actor_type) == ("cron", None)


def test_what_is_not_text_becomes_text_that_postgresql_keeps() -> None:
    with bind(actor=42, tenant=UUID(int=7), reason="a\0b\ud800c", user_agent="x" * 5000, settings={"k\0": "v" * 5000}):
        context = current()
    assert (context.actor_id, context.tenant_id, context.reason) == ("user:42", str(UUID(int=7)), "a␀b�c")
    assert context.user_agent is not None
    assert len(context.user_agent) == LONGEST_WORD
    assert context.settings == {"k␀": "v" * 5000}
    assert decode_context(encode_context(context).encode()) == context


def test_a_decorated_function_is_bound_anew_at_each_call() -> None:
    @bind(tenant="acme")
    def plain(more: str) -> tuple[str | None, str | None, str]:
        return current().actor_id, current().tenant_id, more

    @bind(tenant="acme")
    async def waiting() -> Context:
        await asyncio.sleep(0)
        return current()

    with bind(actor="a"):
        assert plain("x") == ("a", "acme", "x")
        assert asyncio.run(waiting()) == Context(actor_id="a", tenant_id="acme")
    assert plain("y") == (None, "acme", "y")
    assert plain.__name__ == "plain"
    assert asyncio.iscoroutinefunction(waiting)
    assert current() == Context()


def test_a_decorated_generator_is_bound_in_its_steps_and_not_between() -> None:
    seen: list[object] = []

    @bind(tenant="acme")
    def steps() -> Iterator[str]:
        with bind(reason="inside"):
            try:
                seen.append((yield str(current().reason)))
            except KeyError:
                seen.append(current())
            yield str(current().reason)
        seen.append(current())

    walk: Any = steps()
    assert next(walk) == "inside"
    assert current() == Context()
    with bind(actor="b"):
        assert walk.throw(KeyError("x")) == "inside"
        assert current() == Context(actor_id="b", actor_type=None)
    assert list(walk) == []
    assert seen == [Context(tenant_id="acme", reason="inside"), Context(tenant_id="acme")]

    closing = steps()
    next(closing)
    closing.close()
    assert current() == Context()


def test_a_decorated_async_generator_is_bound_in_its_steps_and_not_between() -> None:
    ended: list[Context] = []

    @bind(tenant="acme")
    async def steps() -> AsyncIterator[Context]:
        try:
            for _ in range(3):
                await asyncio.sleep(0)
                yield current()
        finally:
            ended.append(current())

    async def main() -> None:
        walk: Any = steps()
        assert (await anext(walk)).tenant_id == "acme"
        assert current() == Context()
        await walk.aclose()
        assert [each.tenant_id async for each in steps()] == ["acme"] * 3
        walk = steps()
        await anext(walk)
        with pytest.raises(KeyError):
            await walk.athrow(KeyError("x"))
        assert current() == Context()

    asyncio.run(main())
    assert [each.tenant_id for each in ended] == ["acme"] * 3


def test_a_generator_that_ends_late_takes_away_only_its_own() -> None:
    def leaky() -> Iterator[None]:
        with bind(tenant="leaked"):
            yield

    walk = leaky()
    next(walk)
    with bind(actor="a"):
        assert current() == Context(actor_id="a", tenant_id="leaked")
        walk.close()
        assert current() == Context(actor_id="a")
    assert current() == Context()


def test_one_binding_serves_many_tasks_at_once() -> None:
    acme = bind(tenant="acme")

    async def work(number: int) -> bool:
        with bind(actor=str(number)), acme:
            await asyncio.sleep(0)
            inside = current() == Context(actor_id=str(number), tenant_id="acme")
            with acme:
                await asyncio.sleep(0)
            return inside and current() == Context(actor_id=str(number), tenant_id="acme")

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work(number)) for number in range(20)]
        assert all(task.result() for task in tasks)

    asyncio.run(main())


def test_threads_see_it_where_it_is_carried() -> None:
    async def told() -> Context:
        return current()

    with bind(actor="a"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(current).result() == Context()
        assert pool.submit(carry(current)).result() == Context(actor_id="a")
        assert pool.submit(current).result() == Context()
        later = carry(told)
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
    assert asyncio.run(later()) == Context(actor_id="a")


def test_what_becomes_known_inside_a_request_holds_for_all_of_it() -> None:
    known: list[str] = []
    later = Later(bind(request="r"), lambda: bind(actor=known[-1]) if known else None)
    assert not amend(actor="nobody is asked")
    with bind(tenant="acme"), later, bind(reason="why"):
        inside = here()
        assert current() == inside() == Context(tenant_id="acme", request_id="r", reason="why")
        known.append("user:1")
        assert (inside().actor_id, inside().actor_type, current().reason) == ("user:1", "user", "why")
        with ThreadPoolExecutor(1) as pool:
            # Also what a thread says that knows the request by a copy of the context.
            assert pool.submit(carry(lambda: amend(actor="user:2", reason="hidden", settings={"a": "1"}))).result()
        amend(session="s", settings={"b": "2"})
        expected = Context(
            actor_id="user:2", actor_type="user", tenant_id="acme", session_id="s", request_id="r", reason="why",
            settings={"a": "1", "b": "2"},
        )  # fmt: skip
        assert current() == inside() == expected
        with bind(actor="admin:9"):
            assert amend(tenant="other")
            assert current().actor_id == "admin:9"
            assert current().tenant_id == "other"
        known.clear()
        later.settle()
        known.append("user:3")
        assert inside().actor_id == "user:2"
    assert current() == Context()
    assert inside().actor_id == "user:2"


def test_looking_is_not_asked_by_what_it_does_itself_and_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[Context] = []

    def look() -> Any:
        asked.append(current())
        if len(asked) == 2:
            raise KeyError("session")
        return bind(actor=f"user:{len(asked)}")

    with Later(bind(request="r"), look):
        assert current() == Context(actor_id="user:1", actor_type="user", request_id="r")
        assert current().actor_id == "user:1", "what was known holds on when it fails"
        assert current().actor_id == "user:3"
    assert [context.actor_id for context in asked] == [None, "user:1", "user:1"]
    assert "cannot be told: KeyError: 'session'" in caplog.text


def test_equal_answers_are_the_same_object() -> None:
    actor = bind(actor="user:1")
    with Later(bind(request="r"), lambda: actor):
        assert current() is current()


def test_a_generator_that_outlives_a_request_keeps_what_it_knew() -> None:
    def steps() -> Iterator[str | None]:
        yield current().actor_id
        yield current().actor_id

    later = Later(bind(request="r"), lambda: bind(actor="user:1"))
    with later:
        body = carry(steps)()
        assert next(body) == "user:1"
    later.settle()
    assert current() == Context()
    assert list(body) == ["user:1"]


def test_a_context_from_elsewhere_is_adopted_whole() -> None:
    came = Context(actor_id="user:1", actor_type="admin", settings={"a": "1"}, ip="x" * 5000)
    with bind(actor="user:2", tenant="here", settings={"b": "2"}), Later(adopt(came)):
        assert current().actor_type == "admin"
        assert (current().tenant_id, current().settings, len(current().ip or "")) == (None, {"a": "1"}, LONGEST_WORD)
        amend(reason="learnt", settings={"c": "3"})
        with bind(tenant="inside"):
            assert (current().actor_id, current().reason, current().tenant_id) == ("user:1", "learnt", "inside")
            assert current().settings == {"a": "1", "c": "3"}


def test_the_end_of_a_request_is_the_end_of_all_that_was_bound_in_it() -> None:
    with bind(tenant="around"):
        with Later(bind(request="r")):
            bind(actor="never left").__enter__()
            with Later(bind(request="inner")):
                bind(reason="never left").__enter__()
            assert (current().request_id, current().actor_id, current().reason) == ("r", "never left", None)
        assert current() == Context(tenant_id="around")
    later = Later(bind(request="r"))
    later.__exit__()  # where it was never entered: nothing
    assert current() == Context()
