"""What the legacy application does all day: its business transactions, and how often each is done (``KINDS``)."""

from __future__ import annotations

import datetime
import secrets
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import psycopg
from psycopg.rows import DictRow

from afterwrite.demo.expectations import import_finished
from afterwrite.demo.ledger import Progress
from afterwrite.demo.unit import ChangedMind, NothingToDo, Person, Unit
from afterwrite.postgres import statement

IMPORT_ROWS = 500
_IMPORT_CHUNK = 100


# --- People -----------------------------------------------------------------------------------------------------------


def onboard_investor(unit: Unit) -> None:
    """A new investor: account, profile, wallet with the first deposit, and a welcome."""
    world = unit.world
    unit.begin(world.admins.pick(unit.rng))
    mail = f"Invest.{secrets.token_hex(6)}@Example.org"
    user = unit.insert(
        "users", email=mail, full_name=f"Newcomer {mail[7:13]}", preferences={"language": "de"}, tags=["new"]
    )
    investor = unit.insert(
        "investors",
        user_id=user["id"],
        group_id=world.groups.pick(unit.rng) if unit.chance(0.5) else None,
        display_name=user["full_name"],
        email=f" {mail}",
        country=unit.rng.choice(["de", "at", "fr"]),
        risk_score=Decimal(unit.rng.randint(0, 10000)) / 100,
        profile={"occupation": unit.rng.choice(["nurse", "pilot", "baker"]), "experience": unit.rng.randint(0, 9)},
    )
    wallet = unit.insert("wallets", investor_id=investor["id"], address="0x" + secrets.token_hex(20), network="polygon")
    unit.insert("wallet_transactions", wallet_id=wallet["id"], direction="credit", amount=Decimal(5000), memo="deposit")
    unit.insert("notifications", user_id=user["id"], kind="welcome", reference_id=str(user["id"]), title="Welcome")
    world.facts.user_of[str(investor["id"])] = str(user["id"])
    if unit.chance(0.1):
        raise ChangedMind
    unit.put(world.people, Person(str(investor["id"]), str(user["id"]), str(wallet["id"])))


def sign_in(unit: Unit) -> None:
    person = unit.world.people.pick(unit.rng)
    unit.begin(person.user)
    user = unit.lock("users", person.user)
    unit.update(
        "users",
        user,
        last_sign_in_at=datetime.datetime.now(datetime.UTC),
        last_sign_in_ip=f"10.0.0.{unit.rng.randint(1, 250)}",
    )


def change_user(unit: Unit) -> None:
    """An administrator changes somebody's role or status, or only presses save."""
    unit.begin(unit.world.admins.pick(unit.rng))
    user = unit.lock("users", unit.world.viewers.pick(unit.rng))
    if unit.chance(0.2):
        unit.update("users", user, full_name=user["full_name"], phone=user["phone"])
    else:
        status = "suspended" if user["status"] == "active" else "active"
        unit.update("users", user, role="viewer", status=status, tags=[f"by-{unit.actor[:4]}"])


def invite_viewer(unit: Unit) -> None:
    unit.begin(unit.world.admins.pick(unit.rng))
    name = secrets.token_hex(6)
    user = unit.insert("users", email=f"{name}@example.org", full_name=f"Guest {name}", role="viewer", status="invited")
    unit.put(unit.world.viewers, str(user["id"]))


def remove_viewer(unit: Unit) -> None:
    unit.begin(unit.world.admins.pick(unit.rng))
    unit.delete("users", unit.lock("users", unit.take(unit.world.viewers)))


def decide_kyc(unit: Unit) -> None:
    person = unit.world.people.pick(unit.rng)
    unit.begin(unit.world.admins.pick(unit.rng))
    investor = unit.lock("investors", person.investor)
    status = unit.rng.choice(["in_review", "approved", "rejected"])
    unit.update("investors", investor, kyc_status=status, risk_score=Decimal(unit.rng.randint(0, 10000)) / 100)


def edit_investor(unit: Unit) -> None:
    """Master data, a move between groups, and sometimes a form saved as it was."""
    person = unit.world.people.pick(unit.rng)
    unit.begin(person.user)
    investor = unit.lock("investors", person.investor)
    if unit.chance(0.2):
        unit.update("investors", investor, display_name=investor["display_name"], profile=investor["profile"])
    else:
        profile = {**investor["profile"], "experience": unit.rng.randint(0, 40)}
        moved = {"country": unit.rng.choice(["de", "at", "fr", "it", "nl"])} if unit.chance(0.5) else {}
        unit.update("investors", investor, profile=profile, group_id=unit.world.groups.pick(unit.rng), **moved)


def remove_imported(unit: Unit) -> None:
    unit.begin(unit.world.admins.pick(unit.rng))
    unit.delete("investors", unit.lock("investors", unit.take(unit.world.imported)))


def remove_active_investor(unit: Unit) -> None:
    """Refused by a guard or a foreign key: people who hold investments stay."""
    person = unit.world.people.pick(unit.rng)
    unit.begin(unit.world.admins.pick(unit.rng))
    unit.delete("investors", unit.lock("investors", person.investor))


def manage_group(unit: Unit) -> None:
    unit.begin(unit.world.admins.pick(unit.rng))
    what = unit.rng.random()
    if what < 0.4:
        project = unit.world.projects.pick(unit.rng)
        group = unit.insert(
            "investor_groups", project_id=project, name=f"Circle {secrets.token_hex(3)}", criteria={"tier": 1}
        )
        unit.put(unit.world.spare_groups, str(group["id"]))
    elif what < 0.7:
        group = unit.lock("investor_groups", unit.world.groups.pick(unit.rng))
        unit.update(
            "investor_groups", group, member_limit=unit.rng.randint(10, 500), criteria={"tier": unit.rng.randint(1, 4)}
        )
    else:
        unit.delete("investor_groups", unit.lock("investor_groups", unit.take(unit.world.spare_groups)))


# --- Projects ---------------------------------------------------------------------------------------------------------


def create_project(unit: Unit) -> None:
    owner = unit.world.admins.pick(unit.rng)
    unit.begin(owner)
    name = f"Plan {secrets.token_hex(4)}"
    project = unit.insert(
        "projects",
        owner_id=owner,
        code=f"D-{secrets.token_hex(5)}",
        name=name,
        description="A first idea",
        target_amount=unit.money(900_000),
        tags=["draft"],
        metadata={"sector": "solar"},
    )
    unit.insert("project_settings", project_id=project["id"], project_name=name, features={"documents": False})
    unit.world.facts.owner_of[str(project["id"])] = owner
    unit.put(unit.world.drafts, str(project["id"]))


def edit_project(unit: Unit) -> None:
    """Texts, names, a pause; now and then saved as it was, or a status that the guard refuses."""
    at = unit.world.projects.pick(unit.rng)
    unit.begin(unit.world.facts.owner_of[at])
    project = unit.lock("projects", at)
    what = unit.rng.random()
    if what < 0.15:
        unit.update("projects", project, name=project["name"], description=project["description"], tags=project["tags"])
    elif what < 0.35:
        unit.update("projects", project, name=f"{project['name'].split(' #')[0]} #{unit.rng.randint(1, 999)}")
    elif what < 0.5:
        unit.update("projects", project, status="paused" if project["status"] == "active" else "active")
    elif what < 0.55:
        unit.update("projects", project, status="draft")
    else:
        tags = unit.rng.sample(["housing", "solar", "forest", "hotel", "eu", "green"], 2)
        text = f"Revision {unit.rng.randint(1, 10_000)}: " + " ".join(
            unit.rng.choices(["yield", "trustee", "notes"], k=8)
        )
        unit.update("projects", project, description=text, tags=tags, target_amount=unit.money(900_000))


def delete_draft(unit: Unit) -> None:
    unit.begin(unit.world.admins.pick(unit.rng))
    unit.delete("projects", unit.lock("projects", unit.take(unit.world.drafts)))


def edit_settings(unit: Unit) -> None:
    at = unit.world.projects.pick(unit.rng)
    unit.begin(unit.world.facts.owner_of[at])
    settings = unit.lock("project_settings", at)
    features = {**settings["features"], unit.rng.choice(["secondary_market", "auto_confirm"]): unit.chance(0.5)}
    unit.update(
        "project_settings", settings, features=features, allowed_countries=unit.rng.sample(["DE", "AT", "FR", "IT"], 2)
    )


def reset_settings(unit: Unit) -> None:
    at = unit.world.projects.pick(unit.rng)
    unit.begin(unit.world.facts.owner_of[at])
    project = unit.lock("projects", at)
    unit.delete("project_settings", unit.lock("project_settings", at))
    unit.insert(
        "project_settings",
        project_id=at,
        project_name=project["name"],
        visibility="public",
        features={"documents": True},
    )


def upload_document(unit: Unit) -> None:
    at = unit.world.projects.pick(unit.rng)
    unit.begin(unit.world.facts.owner_of[at])
    name = secrets.token_hex(4)
    document = unit.insert(
        "documents",
        project_id=at,
        uploaded_by=unit.actor,
        title=f"Paper {name}",
        kind=unit.rng.choice(["contract", "prospectus", "report", "other"]),
        storage_path=f"documents/{name}.pdf",
        keywords=[name[:3], "pdf"],
    )
    unit.put(unit.world.documents, str(document["id"]))


def revise_document(unit: Unit) -> None:
    at = unit.world.documents.pick(unit.rng)
    unit.begin(unit.world.admins.pick(unit.rng))
    document = unit.lock("documents", at)
    unit.update("documents", document, version=document["version"] + 1, title=document["title"], keywords=["revised"])


def remove_document(unit: Unit) -> None:
    """Mostly a draft; sometimes a signed one, which the guard keeps."""
    unit.begin(unit.world.admins.pick(unit.rng))
    if unit.chance(0.2):
        unit.delete("documents", unit.lock("documents", unit.world.signed.pick(unit.rng)))
    else:
        unit.delete("documents", unit.lock("documents", unit.take(unit.world.documents)))


def touch_nothing(unit: Unit) -> None:
    """An UPDATE and a DELETE that find no row."""
    unit.begin(unit.world.admins.pick(unit.rng))
    nobody = str(uuid.UUID(int=unit.rng.getrandbits(128)))
    unit.miss("bump", statement("application.bump_missing_document"), nobody=nobody)
    unit.miss("delete", statement("application.delete_missing_subscription"), nobody=nobody)


# --- Money in ---------------------------------------------------------------------------------------------------------


def subscribe(unit: Unit) -> None:
    person = unit.world.people.pick(unit.rng)
    unit.begin(person.user)
    row = unit.insert(
        "subscriptions",
        project_id=unit.world.projects.pick(unit.rng),
        investor_id=person.investor,
        amount=unit.money(20_000),
        currency=unit.rng.choice(["EUR", "CHF"]),
    )
    if unit.chance(0.1):
        row = unit.update("subscriptions", row, notes="second thoughts", amount=row["amount"] + 100)
    if unit.chance(0.05):
        raise ChangedMind
    unit.put(unit.world.submitted, str(row["id"]))


def confirm_subscription(unit: Unit) -> None:
    """The money has come: confirm, and book the investment. A bonus that cannot be booked is left out."""
    at = unit.take(unit.world.submitted)
    unit.begin(unit.world.admins.pick(unit.rng))
    row = unit.update("subscriptions", unit.lock("subscriptions", at), status="confirmed")
    investment = {
        "subscription_id": row["id"],
        "project_id": row["project_id"],
        "investor_id": row["investor_id"],
        "amount": row["amount"],
        "unit_price": Decimal("12.5000"),
    }
    made = unit.insert("investments", **investment)
    if unit.chance(0.2):
        try:
            with unit.savepoint():
                unit.insert("investments", **{**investment, "amount": Decimal(25)})
                unit.insert("investments", **{**investment, "amount": Decimal(10), "unit_price": Decimal(-1)})
        except psycopg.errors.CheckViolation:
            pass
    unit.put(unit.world.investments, str(made["id"]))


def cancel_subscription(unit: Unit) -> None:
    at = unit.take(unit.world.submitted)
    unit.begin(unit.world.admins.pick(unit.rng))
    row = unit.update("subscriptions", unit.lock("subscriptions", at), status="cancelled", notes="withdrawn")
    if unit.chance(0.6):
        unit.delete("subscriptions", row)
    elif unit.chance(0.2):
        unit.update("subscriptions", row, status="confirmed")  # refused: cancelled is final


def correct_investment(unit: Unit) -> None:
    at = unit.world.investments.pick(unit.rng)
    unit.begin(unit.world.admins.pick(unit.rng))
    row = unit.lock("investments", at)
    if unit.chance(0.5):
        unit.update("investments", row, amount=unit.money(20_000))
    else:
        unit.update("investments", row, status="closed" if row["status"] == "open" else "open")


def remove_investment(unit: Unit) -> None:
    unit.begin(unit.world.admins.pick(unit.rng))
    unit.delete("investments", unit.lock("investments", unit.take(unit.world.investments)))


# --- Tokens -----------------------------------------------------------------------------------------------------------


def allocate(unit: Unit) -> None:
    """Tokens to an investor, with the operation on the chain; sometimes more than there are, which is refused."""
    person = unit.world.people.pick(unit.rng)
    at = unit.world.tokens.pick(unit.rng)
    unit.begin(unit.world.facts.owner_of[unit.world.facts.project_of[at]])
    token = unit.lock("tokens", at)
    wanted = Decimal(unit.rng.randint(1, 200))
    if unit.chance(0.05):
        wanted += token["total_supply"]
    made = unit.insert(
        "token_allocations",
        token_id=at,
        investor_id=person.investor,
        amount=wanted,
        vests_on=datetime.date(2027, 1, 1) + datetime.timedelta(days=unit.rng.randint(0, 900)),
        conditions=["kyc"],
    )
    made_operations = [
        unit.insert(
            "token_operations",
            token_id=at,
            operator_id=unit.actor,
            kind=kind,
            amount=wanted,
            payload={"to": person.wallet},
        )
        for kind in (["lock", "transfer"] if unit.chance(0.3) else ["transfer"])
    ]
    unit.put(unit.world.allocations, str(made["id"]))
    for operation in made_operations:
        unit.put(unit.world.operations, operation["id"])


def change_allocation(unit: Unit) -> None:
    at = unit.take(unit.world.allocations)
    unit.begin(unit.world.admins.pick(unit.rng))
    row = unit.connection.execute(statement("application.read_token_of"), {"allocation": at}).fetchone()
    if row is None:
        raise NothingToDo
    unit.lock("tokens", row["token_id"])
    allocation = unit.lock("token_allocations", at)
    what = unit.rng.random()
    if what < 0.4:
        unit.delete("token_allocations", allocation)
        return
    if what < 0.7:
        unit.update("token_allocations", allocation, amount=Decimal(unit.rng.randint(1, 200)))
    else:
        unit.update("token_allocations", allocation, conditions=["kyc", "lockup"])
    unit.put(unit.world.allocations, at)


def settle_operation(unit: Unit) -> None:
    """Confirmations from the chain; old ones are cleared away."""
    at = unit.take(unit.world.operations)
    unit.begin(unit.world.admins.pick(unit.rng))
    operation = unit.lock("token_operations", at)
    if unit.chance(0.4):
        unit.delete("token_operations", operation)
    else:
        unit.update(
            "token_operations",
            operation,
            status="settled",
            payload={**operation["payload"], "block": unit.rng.randint(1, 10**6)},
        )
        unit.put(unit.world.operations, at)


def create_token(unit: Unit) -> None:
    project = unit.world.projects.pick(unit.rng)
    unit.begin(unit.world.facts.owner_of[project])
    symbol = secrets.token_hex(2).upper()
    token = unit.insert(
        "tokens",
        project_id=project,
        symbol=symbol,
        name=f"Series {symbol}",
        total_supply=Decimal(1_000_000),
        config={"chain": "base"},
    )
    unit.world.facts.project_of[str(token["id"])] = project
    unit.put(unit.world.draft_tokens, str(token["id"]))


def edit_token(unit: Unit) -> None:
    """More supply, a new setting, or less supply than is allocated, which the guard refuses."""
    at = unit.world.tokens.pick(unit.rng)
    unit.begin(unit.world.facts.owner_of[unit.world.facts.project_of[at]])
    token = unit.lock("tokens", at)
    what = unit.rng.random()
    if what < 0.5:
        unit.update("tokens", token, total_supply=token["total_supply"] + 1000)
    elif what < 0.9:
        unit.update("tokens", token, config={**token["config"], "lockup_days": unit.rng.randint(0, 365)})
    else:
        unit.update("tokens", token, total_supply=token["allocated_supply"] - 1)


def delete_token(unit: Unit) -> None:
    unit.begin(unit.world.admins.pick(unit.rng))
    unit.delete("tokens", unit.lock("tokens", unit.take(unit.world.draft_tokens)))


def manage_template(unit: Unit) -> None:
    unit.begin(unit.world.admins.pick(unit.rng))
    what = unit.rng.random()
    if what < 0.4:
        name = f"Template {secrets.token_hex(3)}"
        template = unit.insert(
            "token_templates", created_by=unit.actor, name=name, standard="erc3643", blocks={"transfer": ["kyc"]}
        )
        unit.put(unit.world.templates, str(template["id"]))
        return
    at = unit.take(unit.world.templates)
    template = unit.lock("token_templates", at)
    if what < 0.7:
        unit.update("token_templates", template, version=template["version"] + 1, is_active=unit.chance(0.8))
        unit.put(unit.world.templates, at)
    else:
        unit.delete("token_templates", template)


# --- Money out --------------------------------------------------------------------------------------------------------


def schedule_distribution(unit: Unit) -> None:
    """A dividend for several investors at once; sometimes one is struck from the list again."""
    project = unit.world.projects.pick(unit.rng)
    unit.begin(unit.world.facts.owner_of[project])
    due = datetime.date(2026, 12, 31)
    for _ in range(unit.rng.randint(2, 5)):
        person = unit.world.people.pick(unit.rng)
        row = unit.insert(
            "distributions", project_id=project, investor_id=person.investor, amount=unit.money(400), scheduled_on=due
        )
        if unit.chance(0.15):
            unit.delete("distributions", row)
        else:
            unit.put(unit.world.scheduled, str(row["id"]))


def pay_distribution(unit: Unit) -> None:
    at = unit.take(unit.world.scheduled)
    person = unit.world.people.pick(unit.rng)
    unit.begin(unit.world.admins.pick(unit.rng))
    unit.lock("wallets", person.wallet)
    row = unit.lock("distributions", at)
    unit.update("distributions", row, status="paid", paid_at=datetime.datetime.now(datetime.UTC))
    entry = unit.insert(
        "wallet_transactions",
        wallet_id=person.wallet,
        direction="credit",
        amount=row["amount"],
        memo="dividend",
        reference=at,
    )
    unit.put(unit.world.paid, at)
    unit.put(unit.world.booked, (entry["id"], person.wallet))


def tamper_with_paid(unit: Unit) -> None:
    """Refused at COMMIT by a deferred constraint trigger, or harmless: only the time is corrected."""
    at = unit.world.paid.pick(unit.rng)
    unit.begin(unit.world.admins.pick(unit.rng))
    row = unit.lock("distributions", at)
    what = unit.rng.random()
    if what < 0.3:
        unit.update("distributions", row, amount=row["amount"] + 1)
    elif what < 0.5:
        unit.delete("distributions", row)
    else:
        unit.update("distributions", row, paid_at=datetime.datetime.now(datetime.UTC))


def request_redemption(unit: Unit) -> None:
    person = unit.world.people.pick(unit.rng)
    unit.begin(person.user)
    wallet = unit.lock("wallets", person.wallet)
    amount = unit.money(100) if unit.chance(0.9) else Decimal(wallet["balance"]) + 10**6
    token = unit.world.tokens.pick(unit.rng)
    row = unit.insert("redemptions", token_id=token, investor_id=person.investor, amount=amount, reason="liquidity")
    unit.put(unit.world.requested, str(row["id"]))


def decide_redemption(unit: Unit) -> None:
    at = unit.take(unit.world.requested)
    person = unit.world.people.pick(unit.rng)
    unit.begin(unit.world.admins.pick(unit.rng))
    what = unit.rng.random()
    if what < 0.5:
        unit.lock("wallets", person.wallet)
    row = unit.lock("redemptions", at)
    now = datetime.datetime.now(datetime.UTC)
    if what < 0.5:
        unit.update("redemptions", row, status="approved", decided_at=now)
        unit.insert(
            "wallet_transactions", wallet_id=person.wallet, direction="debit", amount=row["amount"], memo="redeemed"
        )
    elif what < 0.7:
        unit.update("redemptions", row, status="rejected", decided_at=now, reason="incomplete")
    else:
        unit.delete("redemptions", row)


def transfer(unit: Unit) -> None:
    """Between two wallets; now and then more than there is, which the CHECK on the balance refuses."""
    giver, taker = unit.world.people.pick(unit.rng), unit.world.people.pick(unit.rng)
    if giver.wallet == taker.wallet:
        raise NothingToDo
    unit.begin(giver.user)
    held = {wallet: unit.lock("wallets", wallet) for wallet in sorted((giver.wallet, taker.wallet))}
    amount = unit.money(20)
    if unit.chance(0.05):
        amount += held[giver.wallet]["balance"]
    reference = secrets.token_hex(6)
    for wallet, direction in ((giver.wallet, "debit"), (taker.wallet, "credit")):
        entry = unit.insert(
            "wallet_transactions",
            wallet_id=wallet,
            direction=direction,
            amount=amount,
            memo="transfer",
            reference=reference,
        )
        unit.put(unit.world.booked, (entry["id"], wallet))


def settle_entry(unit: Unit) -> None:
    """Settle a booking, correct it, or strike it out."""
    number, wallet = unit.take(unit.world.booked)
    unit.begin(unit.world.admins.pick(unit.rng))
    unit.lock("wallets", wallet)
    entry = unit.lock("wallet_transactions", number, wallet)
    what = unit.rng.random()
    if what < 0.5:
        unit.update("wallet_transactions", entry, status="settled", memo=entry["memo"])
        unit.put(unit.world.booked, (number, wallet))
    elif what < 0.7:
        unit.update("wallet_transactions", entry, amount=entry["amount"] + Decimal("0.50"))
        unit.put(unit.world.booked, (number, wallet))
    else:
        unit.delete("wallet_transactions", entry)


def manage_wallet(unit: Unit) -> None:
    person = unit.world.people.pick(unit.rng)
    unit.begin(person.user)
    what = unit.rng.random()
    if what < 0.45:
        wallet = unit.insert(
            "wallets", investor_id=person.investor, address="0x" + secrets.token_hex(20), network="ethereum"
        )
        unit.put(unit.world.spare_wallets, str(wallet["id"]))
        return
    at = unit.take(unit.world.spare_wallets)
    wallet = unit.lock("wallets", at)
    if what < 0.7:
        unit.update("wallets", wallet, status="frozen" if wallet["status"] == "active" else "active")
        unit.put(unit.world.spare_wallets, at)
    else:
        unit.delete("wallets", wallet)


# --- Around it --------------------------------------------------------------------------------------------------------


def read_notifications(unit: Unit) -> None:
    person = unit.world.people.pick(unit.rng)
    user = person.user if unit.chance(0.6) else unit.world.facts.owner_of[unit.world.projects.pick(unit.rng)]
    unit.begin(user)
    rows = unit.connection.execute(statement("application.read_unread"), {"user": user}).fetchall()
    for row in rows:
        unit.update("notifications", row, read_at=datetime.datetime.now(datetime.UTC))


def clear_notifications(unit: Unit) -> None:
    user = unit.world.facts.owner_of[unit.world.projects.pick(unit.rng)]
    unit.begin(user)
    rows = unit.connection.execute(statement("application.read_oldest"), {"user": user}).fetchall()
    for row in rows:
        unit.delete("notifications", row)


def announce(unit: Unit) -> None:
    unit.begin(unit.world.admins.pick(unit.rng))
    reference = secrets.token_hex(6)
    for user in dict.fromkeys(unit.world.people.pick(unit.rng).user for _ in range(3)):
        unit.insert(
            "notifications",
            user_id=user,
            kind="announcement",
            reference_id=reference,
            title="Maintenance",
            payload={"hours": 2},
        )


def import_investors(unit: Unit) -> None:
    """Five hundred investors from a file, in chunks; a chunk with a bad row is rolled back and tried without it."""
    unit.begin(unit.world.admins.pick(unit.rng))
    operation = unit.insert(
        "bulk_operations",
        initiated_by=unit.actor,
        kind="investor import",
        status="running",
        total_rows=IMPORT_ROWS,
        options={"file": f"{secrets.token_hex(4)}.csv"},
    )
    failed = 0
    made: list[DictRow] = []
    for _ in range(0, IMPORT_ROWS, _IMPORT_CHUNK):
        rows = [_imported_row(operation["id"]) for _ in range(_IMPORT_CHUNK)]
        if unit.chance(0.1):
            rows[-1]["email"] = rows[0]["email"]
        try:
            with unit.savepoint():
                made += unit.insert_many("investors", rows)
        except psycopg.errors.UniqueViolation:
            made += unit.insert_many("investors", rows[:-1])
            failed += 1
    operation = unit.update(
        "bulk_operations",
        operation,
        status="completed",
        failed_rows=failed,
        finished_at=datetime.datetime.now(datetime.UTC),
    )
    done = sum(effect.rows for effect in unit.effects if isinstance(effect, Progress))
    unit.expect(*import_finished(operation, done))
    for row in made[:20]:
        unit.put(unit.world.imported, str(row["id"]))


def _imported_row(operation: uuid.UUID) -> dict[str, Any]:
    name = secrets.token_hex(6)
    return {
        "bulk_operation_id": str(operation),
        "display_name": f"Import {name}",
        "email": f"{name}@import.example.org",
        "kyc_status": "pending",
        "country": "DE",
        "risk_score": 50,
        "profile": {"source": "file", "ticket": name[:4]},
    }


def manage_bulk(unit: Unit) -> None:
    """An import that is planned, called off, and cleared away."""
    unit.begin(unit.world.admins.pick(unit.rng))
    what = unit.rng.random()
    if what < 0.5:
        row = unit.insert("bulk_operations", initiated_by=unit.actor, kind="statement mailing", options={"month": 11})
        unit.put(unit.world.pending_bulk, str(row["id"]))
        return
    row = unit.update(
        "bulk_operations", unit.lock("bulk_operations", unit.take(unit.world.pending_bulk)), status="cancelled"
    )
    if what < 0.9:
        unit.delete("bulk_operations", row)


KINDS: tuple[tuple[Callable[[Unit], None], float], ...] = (
    (subscribe, 12),
    (transfer, 10),
    (edit_project, 9),
    (allocate, 7),
    (confirm_subscription, 6),
    (read_notifications, 6),
    (sign_in, 5),
    (settle_entry, 5),
    (onboard_investor, 4),
    (edit_settings, 4),
    (pay_distribution, 4),
    (edit_investor, 3),
    (decide_kyc, 3),
    (request_redemption, 4),
    (decide_redemption, 3),
    (change_allocation, 3.5),
    (upload_document, 3),
    (revise_document, 2.5),
    (settle_operation, 3),
    (cancel_subscription, 2.5),
    (correct_investment, 2.5),
    (schedule_distribution, 2.5),
    (manage_wallet, 3.5),
    (manage_template, 4),
    (manage_group, 4),
    (edit_token, 2.5),
    (create_token, 1.5),
    (delete_token, 1.2),
    (create_project, 2),
    (delete_draft, 1.6),
    (invite_viewer, 2),
    (remove_viewer, 1.6),
    (change_user, 2),
    (remove_document, 2),
    (remove_investment, 1.2),
    (remove_imported, 1.5),
    (reset_settings, 1.5),
    (clear_notifications, 2),
    (announce, 1),
    (manage_bulk, 4),
    (import_investors, 1.8),
    (tamper_with_paid, 1.2),
    (remove_active_investor, 1),
    (touch_nothing, 1),
)
