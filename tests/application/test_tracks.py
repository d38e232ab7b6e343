"""``activity.record``, ``track`` and ``auth`` as an application calls them, with what is recorded kept in memory."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import pytest

from afterwrite import Category, activity, context
from afterwrite.errors import UsageError
from afterwrite.record import Level, Outcome
from afterwrite.testing import Memory, recording


class Declined(Exception):
    pass


def test_what_happened_is_recorded_with_who_did_it(recorded: Memory) -> None:
    with context.bind(actor="user:42", tenant="acme", reason="audit"):
        made = activity.record(
            "report.exported", entity=("report", 7), category=Category.DOCUMENT, metadata={"rows": 3}
        )
    found = recorded.assert_recorded(
        "report.exported", entity=("report", 7), actor="user:42", tenant="acme", metadata={"rows": 3, "reason": "audit"}
    )
    assert (found.id, found.category, found.outcome, found.severity) == (made.id, "document", "success", "info")
    assert UUID(made.id).version == 7


def test_a_block_that_ends_in_two_processes_is_two_activities(
    recorded: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with activity.track("a.b") as parents:
        pass
    with activity.track("a.b") as childs:
        monkeypatch.setattr(os, "getpid", lambda: 1)  # as it is after a fork in the block
    ids = [each.id for each in recorded.find("a.b")]
    assert ids[0] == parents.id
    assert ids[1] != childs.id


def test_a_block_is_recorded_with_its_duration_and_what_was_set_in_it(recorded: Memory) -> None:
    with activity.track("invoice.send", metadata={"channel": "mail"}) as run:
        run.entity = ("invoice", 12)
        run.metadata["pages"] = 2
        run.summary = "invoice 12 sent"
        assert activity.tracked() is run
    found = recorded.assert_recorded("invoice.send", entity=("invoice", 12), times=1)
    assert found.metadata == {"channel": "mail", "pages": 2}
    assert found.summary == "invoice 12 sent"
    assert found.duration_ms is not None
    assert 0 <= found.duration_ms < 60_000


def test_a_failure_is_recorded_with_the_type_and_first_line_of_the_error_and_raised_on(recorded: Memory) -> None:
    with pytest.raises(Declined), activity.track("card.charge"):
        raise Declined("no funds, card 4111 1111 1111 1111\nDETAIL: a row")
    found = recorded.assert_recorded("card.charge", outcome="failure", severity="error")
    assert found.metadata == {"error": {"type": f"{__name__}.Declined", "message": "no funds, card [redacted]"}}


def test_a_block_can_fail_without_raising_and_can_be_discarded(recorded: Memory) -> None:
    with activity.track("cache.warm") as run:
        run.fail("nothing to warm")
    recorded.assert_recorded("cache.warm", outcome=Outcome.FAILURE, metadata={"error": {"message": "nothing to warm"}})
    with activity.track("cache.look") as run:
        run.discard()
    recorded.assert_not_recorded("cache.look")
    with contextlib.suppress(KeyError), activity.track("cache.look") as run:
        run.discard()
        raise KeyError("x")
    recorded.assert_recorded("cache.look", outcome="failure")


def test_what_is_recorded_inside_points_to_the_block_around(recorded: Memory) -> None:
    with activity.track("order.place") as outer:
        with activity.track("order.price") as inner:
            activity.record("price.looked_up")
        activity.record("order.noted")
        activity.record("order.linked", caused_by=inner)
    activity.record("order.after")
    causes = {each.action: each.caused_by for each in recorded}
    assert causes == {
        "price.looked_up": inner.id,
        "order.price": outer.id,
        "order.noted": outer.id,
        "order.linked": inner.id,
        "order.place": None,
        "order.after": None,
    }


def test_functions_of_every_kind_are_tracked_and_stay_what_they_are(recorded: Memory) -> None:
    @activity.track("kind.call", entity=("thing", activity.result()))
    def call(number: int) -> int:
        """Say it."""
        return number

    @activity.track("kind.steps")
    def steps(number: int) -> Iterator[int]:
        got = yield number
        activity.record("kind.inside")
        return got

    @activity.track("kind.await")
    async def wait(number: int) -> int:
        await asyncio.sleep(0)
        return number

    @activity.track("kind.steps_await")
    async def steps_await(number: int) -> AsyncIterator[int]:
        yield number
        activity.record("kind.inside_await")
        yield number + 1

    assert call(1) == 1
    assert (call.__name__, call.__doc__) == ("call", "Say it.")
    assert inspect.isgeneratorfunction(steps)
    assert inspect.iscoroutinefunction(wait)
    assert inspect.isasyncgenfunction(steps_await)

    generator: Any = steps(2)
    assert next(generator) == 2
    assert context.current().caused_by is None
    recorded.assert_not_recorded("kind.steps")
    with pytest.raises(StopIteration) as stop:
        generator.send("sent")
    assert stop.value.value == "sent"

    async def run() -> list[int]:
        return [await wait(3), *[each async for each in steps_await(4)]]

    assert asyncio.run(run()) == [3, 4, 5]
    found = {each.action: each for each in recorded}
    assert {each.outcome for each in recorded} == {Outcome.SUCCESS}
    assert found["kind.call"].entity == ("thing", "1")
    assert found["kind.inside"].caused_by == found["kind.steps"].id
    assert found["kind.inside_await"].caused_by == found["kind.steps_await"].id


def test_failures_of_functions_of_every_kind_are_recorded_and_raised_on(recorded: Memory) -> None:
    @activity.track("bad.call")
    def call() -> None:
        raise Declined

    @activity.track("bad.steps")
    def steps() -> Iterator[int]:
        yield 1
        raise Declined

    @activity.track("bad.await")
    async def wait() -> None:
        raise Declined

    @activity.track("bad.steps_await")
    async def steps_await() -> AsyncIterator[int]:
        yield 1
        raise Declined

    async def drain() -> None:
        async for _ in steps_await():
            pass

    for attempt in (call, lambda: list(steps()), lambda: asyncio.run(wait()), lambda: asyncio.run(drain())):
        with pytest.raises(Declined):
            attempt()
    assert [each.action for each in recorded] == ["bad.call", "bad.steps", "bad.await", "bad.steps_await"]
    for each in recorded:
        assert (each.outcome, each.metadata["error"]["type"]) == (Outcome.FAILURE, f"{__name__}.Declined")


def test_a_generator_that_is_left_early_did_not_fail(recorded: Memory) -> None:
    @activity.track("left.steps")
    def steps() -> Iterator[int]:
        yield from range(10)

    @activity.track("left.steps_await")
    async def steps_await() -> AsyncIterator[int]:
        for each in range(10):
            yield each

    for _ in steps():
        break

    async def leave() -> None:
        async with contextlib.aclosing(steps_await()) as found:  # type: ignore[type-var]
            async for _ in found:
                break

    asyncio.run(leave())
    recorded.assert_recorded("left.steps", outcome="success", metadata={"left": "GeneratorExit"})
    recorded.assert_recorded("left.steps_await", outcome="success", metadata={"left": "GeneratorExit"})


def test_a_cancelled_task_has_failed_with_a_warning(recorded: Memory) -> None:
    async def run() -> None:
        async with activity.track("job.run"):
            await asyncio.sleep(60)

    async def cancel() -> None:
        task = asyncio.create_task(run())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    error = {"type": "asyncio.exceptions.CancelledError"}
    recorded.assert_recorded("job.run", outcome="failure", severity="warning", metadata={"error": error})


def test_a_decorator_takes_what_it_records_from_arguments_and_result(recorded: Memory) -> None:
    class User:
        def __init__(self, id: int) -> None:
            self.id = id

    @activity.track(
        "user.rename",
        entity=("user", activity.argument("user.id")),
        metadata={
            "name": activity.argument("name"),
            "length": activity.result("length"),
            "plan": activity.argument("plan"),
        },
    )
    def rename(user: User, *, name: str = "Ada", **more: object) -> dict[str, int]:
        return {"length": len(name)}

    rename(User(5), plan="gold")
    recorded.assert_recorded(
        "user.rename", entity=("user", 5), metadata={"name": "Ada", "length": 3, "plan": "gold"}, times=1
    )
    with pytest.raises(UsageError, match="has no parameter 'usr'"):
        activity.track("user.rename", entity=("user", activity.argument("usr.id")))(lambda user: user)


def test_without_an_action_a_function_is_its_own_name(recorded: Memory) -> None:
    class OrderBook:
        @activity.track
        def cancel_all(self) -> None: ...

        @activity.track
        @staticmethod
        def count() -> int:
            return 2

        @activity.track()
        @classmethod
        def open_new(cls) -> str:
            return cls.__name__

    @activity.track
    def refund() -> None: ...

    OrderBook().cancel_all()
    assert (OrderBook.count(), OrderBook().open_new()) == (2, "OrderBook")
    refund()
    actions = [each.action for each in recorded]
    assert actions == ["order_book.cancel_all", "order_book.count", "order_book.open_new",
                       f"{test_without_an_action_a_function_is_its_own_name.__name__}.refund"]  # fmt: skip


def test_whatever_can_be_called_can_be_tracked(recorded: Memory) -> None:
    class PriceList:
        async def __call__(self, number: int) -> int:
            return number

    class Plain:
        def __call__(self) -> int:
            return 5

    assert asyncio.run(activity.track(PriceList())(3)) == 3
    assert activity.track("plain", metadata={"it": activity.result()})(Plain())() == 5
    assert activity.track("part")(functools.partial(max, 1))(2) == 2
    assert activity.track("built.in")(len)([1]) == 1
    actions = [each.action for each in recorded]
    assert actions[0].endswith(".price_list")
    assert actions[1:] == ["plain", "part", "built.in"]
    recorded.assert_recorded("plain", metadata={"it": 5})


def test_calls_inside_of_calls_of_the_same_function_point_to_each_other(recorded: Memory) -> None:
    @activity.track("count.down", metadata={"n": activity.argument("n")})
    def count(n: int) -> None:
        if n:
            count(n - 1)

    count(3)
    found = {each.metadata["n"]: each for each in recorded}
    assert [found[n].caused_by for n in range(4)] == [found[1].id, found[2].id, found[3].id, None]


def test_one_track_may_be_entered_by_many_at_once(recorded: Memory) -> None:
    track = activity.track("shared.block")

    async def one(number: int) -> None:
        async with track as run:
            run.metadata["number"] = number
            await asyncio.sleep(0.001 * (5 - number))
            activity.record("shared.inside", metadata={"number": number})

    async def all_of_them() -> None:
        await asyncio.gather(*map(one, range(5)))

    asyncio.run(all_of_them())
    blocks = {each.metadata["number"]: each.id for each in recorded.find("shared.block")}
    assert sorted(blocks) == [0, 1, 2, 3, 4]
    for inside in recorded.find("shared.inside"):
        assert inside.caused_by == blocks[inside.metadata["number"]]
    with track, track:
        pass
    assert len(recorded.find("shared.block")) == 7


def test_a_block_may_be_left_in_another_thread_than_it_was_entered_in(recorded: Memory) -> None:
    """As frameworks do with the generators that their dependencies are."""
    track = activity.track("moved.block")
    threads = [
        threading.Thread(target=track.__enter__),
        threading.Thread(target=track.__exit__, args=(None, None, None)),
    ]
    for thread in threads:
        thread.start()
        thread.join()
    recorded.assert_recorded("moved.block", times=1)


def test_sign_ins_are_recorded_with_who_and_from_where(recorded: Memory) -> None:
    activity.auth("login", 42, success=True, ip="192.0.2.1", user_agent="curl/8", method="password")
    activity.auth("login", "user:43", success=False, ip="192.0.2.2", reason="wrong password")
    with context.bind(actor="admin:1", ip="192.0.2.9"):
        activity.auth("password.reset", 42)
    activity.auth("login", "admin:7")
    good, bad, reset, admin = recorded
    assert (good.category, good.entity) == ("authentication", ("user", "42"))
    assert (good.actor, good.actor_type) == ("user:42", "user")
    assert (good.ip, good.user_agent, good.metadata) == ("192.0.2.1", "curl/8", {"method": "password"})
    assert (bad.outcome, bad.severity, bad.actor, bad.entity) == (Outcome.FAILURE, Level.WARNING, None, ("user", "43"))
    assert bad.metadata == {"reason": "wrong password"}
    assert (admin.actor, admin.actor_type, admin.entity) == ("admin:7", "admin", ("user", "admin:7"))
    assert (reset.actor, reset.ip) == ("admin:1", "192.0.2.9")
    activity.auth("login", "")
    assert recorded[-1].actor is None
    assert context.current() == context.Context()


def test_the_context_is_the_one_in_which_the_block_began(recorded: Memory) -> None:
    with context.bind(actor="user:1"), activity.track("a.b"), context.bind(actor="user:2"):
        activity.record("a.c")
    assert {each.action: each.actor for each in recorded} == {"a.c": "user:2", "a.b": "user:1"}


def test_outside_of_every_block_tracked_gives_one_that_nothing_comes_of(recorded: Memory) -> None:
    activity.tracked().metadata["lost"] = True
    recorded.assert_not_recorded()


def test_in_production_a_block_that_was_given_nonsense_works_all_the_same() -> None:
    with recording(strict=False) as recorded:
        nonsense: Any = object()
        with activity.track(nonsense, entity=nonsense, severity=nonsense, metadata=nonsense) as run:
            run.metadata = nonsense
        with activity.track(), activity.track("Not An Action", entity=("user", activity.argument("x"))):
            pass
    assert [each.outcome for each in recorded] == [Outcome.SUCCESS] * 3


def test_strict_mode_refuses_at_the_call_and_never_hides_what_a_block_raises() -> None:
    with recording() as recorded:
        with pytest.raises(UsageError, match="is no action"), activity.track("Not An Action"):
            raise AssertionError("the block runs")
        with pytest.raises(UsageError, match=r"'autentication' is no category.*'authentication' is"):
            activity.track("a.b", category="autentication").__enter__()
        with pytest.raises(UsageError, match="secret"), activity.track("a.b") as run:
            run.metadata["password"] = "hunter2"
        with pytest.raises(Declined) as raised, activity.track("a.b", metadata={"password": "hunter2"}):
            raise Declined
        assert any("its activity could not be recorded" in note for note in raised.value.__notes__)
        with pytest.raises(UsageError, match="decorated functions"):
            activity.track("a.b", entity=("user", activity.argument("x"))).__enter__()
    recorded.assert_not_recorded()
