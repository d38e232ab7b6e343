"""A shop with FastAPI: whoever signed in is on every row that their requests change.

pip install afterwrite fastapi uvicorn sqlalchemy[asyncio] asyncpg
export DATABASE_URL=postgresql://localhost/shop
uvicorn --app-dir examples/fastapi_shop app:app
curl -X POST -H "Authorization: Bearer ada" "localhost:8000/orders?what=tea"
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, Header, HTTPException
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from afterwrite import activity, context
from afterwrite.integrations.asgi import ContextMiddleware
from afterwrite.integrations.sqlalchemy import instrument

engine = create_async_engine(os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+asyncpg:", 1))
instrument(engine)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str]
    sent: Mapped[bool] = mapped_column(default=False)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as conn:
        await conn.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()
    await activity.aflush()


app = FastAPI(lifespan=lifespan)
# The proxies that stand before this application, whose X-Forwarded-For is believed.
app.add_middleware(ContextMiddleware, trusted_proxies=["127.0.0.1", "::1"], record="writing")

USERS = {"ada": 1, "bo": 2}


async def signed_in(authorization: Annotated[str, Header()] = "") -> int:
    """Whose token this is. What it finds out holds for the whole request."""
    user = USERS.get(authorization.removeprefix("Bearer "))
    if user is None:
        activity.auth("token.check", success=False, reason="unknown token")
        raise HTTPException(401)
    context.amend(actor=f"user:{user}", tenant="acme")
    return user


@app.post("/orders", status_code=201)
async def order(what: str, user: Annotated[int, Depends(signed_in)], later: BackgroundTasks) -> dict[str, int]:
    async with AsyncSession(engine) as session:
        made = Order(what=what)
        session.add(made)
        await session.flush()
        number = made.id
        # It exists if and only if this transaction commits.
        await activity.record("order.place", entity=("order", number), conn=session)
        await session.commit()
    later.add_task(send, number)
    return {"order": number}


async def send(number: int) -> None:
    """After the response, and by the same user."""
    async with engine.begin() as conn:
        await conn.execute(text("update orders set sent = true where id = :number"), {"number": number})
