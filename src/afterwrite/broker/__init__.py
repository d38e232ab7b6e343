"""A broker in front of the store: NATS JetStream takes what many hosts record, and writers bring it into PostgreSQL.

::

    recorder ─▶ spool ─▶ publish ══▶ stream, 64 lanes ══▶ consumer of a partition ─▶ write ─▶ store
                  ▲         │ acknowledged                   one writer is pinned       │ committed
                  └─ settle ┘                                ▲                          │
                                                             └────── acknowledged ──────┘
"""
