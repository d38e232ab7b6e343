"""The legacy application's database: eighteen tables, a few years of rows, eighty-six triggers."""

from __future__ import annotations

from afterwrite.postgres import Database, script

TABLES = (
    "users",
    "projects",
    "investors",
    "investor_groups",
    "tokens",
    "token_templates",
    "token_allocations",
    "token_operations",
    "subscriptions",
    "investments",
    "distributions",
    "redemptions",
    "wallets",
    "wallet_transactions",
    "documents",
    "notifications",
    "bulk_operations",
    "project_settings",
)
LEGACY_LOGS = ("audit_logs", "activity_log")
STATISTICS = "platform_statistics"
ROLE = "demo_app"


async def create_legacy_application(db: Database, *, seed: int) -> None:
    """Lay the application into an empty database, all or nothing: tables and rows first, its triggers last.

    The same seed makes the same rows with the same ids. Statistics, balances and derived columns are what the
    triggers would have made of them. Creates the cluster's login role ``demo_app`` where it is absent, so it needs a
    role that may.
    """
    async with db.transaction():
        await db.run(b"select set_config('demo.seed', %(seed)s, true)", seed=str(seed))
        for part in ("schema", "seed", "rules", "activity"):
            await db.script(script(f"demo/{part}"))
