"""A shop with Flask: whoever signed in is on every row that their requests change, also while a response is streamed.

pip install afterwrite flask sqlalchemy psycopg
export DATABASE_URL=postgresql://localhost/shop
flask --app examples/flask_shop/app.py run
curl -X POST -H "Authorization: Bearer ada" "localhost:5000/orders?what=tea"
"""

import os
from collections.abc import Iterator

from flask import Flask, Response, abort, g, request
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from afterwrite import activity
from afterwrite.integrations.flask import ContextExtension
from afterwrite.integrations.sqlalchemy import instrument

engine = create_engine(os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:", 1))
instrument(engine)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str]
    sent: Mapped[bool] = mapped_column(default=False)


Base.metadata.create_all(engine)
app = Flask(__name__)
ContextExtension(app, trusted_proxies=["127.0.0.1", "::1"], tenant=lambda request: "acme", record="writing")

USERS = {"ada": 1, "bo": 2}


@app.before_request
def sign_in() -> None:
    user = USERS.get(request.headers.get("authorization", "").removeprefix("Bearer "))
    if user is None:
        activity.auth("token.check", success=False, reason="unknown token")
        abort(401)
    g.user = {"id": user}


@app.post("/orders")
def order() -> tuple[dict[str, int], int]:
    with Session(engine) as session:
        made = Order(what=request.args["what"])
        session.add(made)
        session.flush()
        number = made.id
        # It exists if and only if this transaction commits.
        activity.record("order.place", entity=("order", number), conn=session)
        session.commit()
    return {"order": number}, 201


@app.post("/orders/send")
def send() -> Response:
    """Send all that wait, and tell of each as it goes."""

    def steps() -> Iterator[str]:
        with engine.begin() as conn:
            for number in conn.execute(text("select id from orders where not sent order by id")).scalars().all():
                conn.execute(text("update orders set sent = true where id = :number"), {"number": number})
                yield f"{number}\n"

    return Response(steps(), mimetype="text/plain")
