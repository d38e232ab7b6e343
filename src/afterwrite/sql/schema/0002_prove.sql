-- The proof: what the triggers logged against what was captured, counted in the source database as the stream goes by.
-- The prover moves its watermark in the same transaction as its counts, so that every transaction counts exactly once.

create table afterwrite.proof_window (
    only_row     boolean not null default true,
    number       integer not null default 1,
    started_lsn  pg_lsn  not null default pg_catalog.pg_current_wal_insert_lsn(),
    started_at   timestamptz,
    through_lsn  pg_lsn,
    through_at   timestamptz,
    observed     bigint  not null default 0,
    transactions bigint  not null default 0,
    constraint proof_window_pkey primary key (only_row),
    constraint proof_window_has_one_row check (only_row),
    constraint proof_window_times_in_order check (started_at <= through_at)
);
comment on table afterwrite.proof_window is
    'How far the prover has come, and what its counts cover: transactions that committed at or after started_lsn, up to through_lsn.';
comment on column afterwrite.proof_window.number is 'Goes up by one with each restart of the window, and when the plan changes what is compared: a prover that counted by another number begins again.';
comment on column afterwrite.proof_window.started_at is 'The commit time of the first transaction that the window saw.';
comment on column afterwrite.proof_window.through_lsn is 'The commit LSN of the last transaction that was looked at, in whichever window.';
comment on column afterwrite.proof_window.observed is 'Transactions looked at in this window.';
comment on column afterwrite.proof_window.transactions is 'Those of them in which there was something to compare.';
insert into afterwrite.proof_window default values;

create table afterwrite.proof_trigger (
    trigger       text    not null,
    mode          text    not null,
    operations    text[]  not null,
    mapping       jsonb   not null default '[]',
    overrides     jsonb   not null default '[]',
    notes         text[]  not null default '{}',
    present       boolean not null default true,
    silenced      boolean not null default false,
    silenced_mode text,
    silenced_lsn  pg_lsn,
    version       text,
    version_lsn   pg_lsn,
    since_at      timestamptz,
    since_transactions bigint not null default 0,
    constraint proof_trigger_pkey primary key (trigger),
    constraint proof_trigger_mode check (mode in ('retire', 'defer')),
    constraint proof_trigger_silenced_mode check (silenced_mode in ('retire', 'defer'))
);
comment on table afterwrite.proof_trigger is 'A trigger that is watched, and what is expected of it from here on.';
comment on column afterwrite.proof_trigger.trigger is 'schema.table.trigger, as people and marks name it.';
comment on column afterwrite.proof_trigger.mode is 'retire: its legacy rows are compared; defer: it writes none, so only that it fires is counted.';
comment on column afterwrite.proof_trigger.operations is 'The operations on which it must have been seen firing.';
comment on column afterwrite.proof_trigger.mapping is 'The legacy rows that it writes, column by column, as inferred from its body and said by the plan; empty where it writes nothing that is known.';
comment on column afterwrite.proof_trigger.overrides is 'What of the mapping the plan says.';
comment on column afterwrite.proof_trigger.since_at is 'Where the mapping was changed in the middle of a window: from when on this trigger''s counts are; null: from the window''s start.';
comment on column afterwrite.proof_trigger.since_transactions is 'How many of the window''s transactions were compared before that.';
comment on column afterwrite.proof_trigger.notes is 'What could not be followed in its body.';
comment on column afterwrite.proof_trigger.present is 'Whether it was there when the prover last started.';
comment on column afterwrite.proof_trigger.silenced is 'Whether it is off: so it was found at first, and so the marks in the WAL say since.';
comment on column afterwrite.proof_trigger.version is 'Row versions of the trigger, its clones and its function: the same text means that nobody altered them.';
comment on column afterwrite.proof_trigger.version_lsn is 'Since when (at the latest) this version holds.';

create table afterwrite.proof_plan (
    trigger    text        not null,
    mode       text,
    overrides  jsonb       not null default '[]',
    adopted_at timestamptz not null default pg_catalog.clock_timestamp(),
    constraint proof_plan_pkey primary key (trigger),
    constraint proof_plan_mode check (mode in ('retire', 'defer'))
);
comment on table afterwrite.proof_plan is
    'What the plan says of a trigger otherwise than scan and its own INSERT do: taken over with `afterwrite prove --plan`.';
comment on column afterwrite.proof_plan.mode is 'How it is to be watched; null: as scan says.';
comment on column afterwrite.proof_plan.overrides is 'What its legacy columns hold, or why they are not compared.';

create table afterwrite.proof (
    trigger    text        not null,
    operation  text        not null,
    seen       bigint      not null default 0,
    matched    bigint      not null default 0,
    rows       bigint      not null default 0,
    exact      bigint      not null default 0,
    partly     bigint      not null default 0,
    uncompared bigint      not null default 0,
    first_at   timestamptz not null,
    first_lsn  pg_lsn      not null,
    last_at    timestamptz not null,
    last_lsn   pg_lsn      not null,
    constraint proof_pkey primary key (trigger, operation),
    constraint proof_operation check (operation in ('insert', 'update', 'delete', 'truncate')),
    constraint proof_counts_firings check (seen >= matched),
    constraint proof_in_order check (first_lsn <= last_lsn)
);
comment on table afterwrite.proof is
    'What was seen of one trigger on one operation in this window. A trigger that is no trigger is a legacy table: rows that nobody claims.';
comment on column afterwrite.proof.seen is 'Firings: matched, and those that proof_reason counts by reason.';
comment on column afterwrite.proof.rows is 'Legacy rows found for them; exact, partly and uncompared count those rows'' columns.';

create table afterwrite.proof_reason (
    trigger   text   not null,
    operation text   not null,
    reason    text   not null,
    count     bigint not null,
    constraint proof_reason_pkey primary key (trigger, operation, reason),
    constraint proof_reason_belongs_to_a_proof foreign key (trigger, operation)
        references afterwrite.proof on delete cascade,
    constraint proof_reason_counts_something check (count > 0)
);
comment on table afterwrite.proof_reason is 'Why firings or legacy rows are not simply matched, and how often. missing, extra and value are unexplained.';

create table afterwrite.residual (
    id           bigint generated always as identity,
    trigger      text        not null,
    operation    text        not null,
    reason       text        not null,
    xid          bigint      not null,
    commit_lsn   pg_lsn      not null,
    committed_at timestamptz not null,
    key          text,
    before       text,
    after        text,
    legacy       text,
    expected     text,
    differences  jsonb       not null default '[]',
    constraint residual_pkey primary key (id)
);
comment on table afterwrite.residual is 'The newest five examples of each trigger, operation and reason.';
comment on column afterwrite.residual.before is 'The change''s old row as JSON text, exactly as captured; after likewise.';
comment on column afterwrite.residual.legacy is 'The legacy row as JSON text; expected is what it should be.';
create index residual_newest on afterwrite.residual (trigger, operation, reason, commit_lsn desc, id desc);
