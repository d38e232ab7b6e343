-- What `afterwrite import legacy` remembers: which legacy logs are imported, how their rows are read, and how far; and of
-- every chunk how many rows it had and what they amount to, so that both sides can be compared later.

create table afterwrite.legacy_log (
    id         bigint generated always as identity,
    source     text        not null,
    database   text        not null,
    relation   text        not null,
    system_id  text,
    mapping    text        not null,
    through    text[],
    chunks     integer     not null default 0,
    begun_at   timestamptz not null default clock_timestamp(),
    moved_at   timestamptz not null default clock_timestamp(),
    constraint legacy_log_pkey primary key (id),
    constraint legacy_log_one_of_a_table unique (source, database, relation),
    constraint legacy_log_counts check (chunks >= 0)
);
comment on table afterwrite.legacy_log is
    'A legacy log whose rows were imported, by source, database and quoted table, and how far: moves in the transaction that stores the rows.';
comment on column afterwrite.legacy_log.system_id is 'The cluster that it was read from; null where that role may not ask.';
comment on column afterwrite.legacy_log.mapping is
    'How its rows become activities, as TOML. Fixed when its import begins: another one would give the same rows other ids.';
comment on column afterwrite.legacy_log.through is 'The values of its order columns at the last row that was read; null before the first.';

create table afterwrite.legacy_chunk (
    log      bigint      not null,
    number   integer     not null,
    after    text[],
    through  text[]      not null,
    rows     bigint      not null,
    stored   bigint      not null,
    left_out jsonb       not null default '{}',
    digest   bytea       not null,
    batch_id bigint,
    at       timestamptz not null default clock_timestamp(),
    constraint legacy_chunk_pkey primary key (log, number),
    constraint legacy_chunk_log foreign key (log) references afterwrite.legacy_log (id) on delete cascade,
    constraint legacy_chunk_counts check (number >= 1 and rows >= stored and stored >= 0)
);
comment on table afterwrite.legacy_chunk is
    'One stretch of a legacy log that was imported: its rows from beyond after up to through, in the log''s order.';
comment on column afterwrite.legacy_chunk.stored is 'How many of its rows are in the store, whoever brought them.';
comment on column afterwrite.legacy_chunk.left_out is 'How many rows were not imported, by reason.';
comment on column afterwrite.legacy_chunk.digest is
    'sha256 over the activities that its rows gave, in the form of a batch''s seal (with 0 for the batch).';
comment on column afterwrite.legacy_chunk.batch_id is 'The batch that stored them; null where all were there already, or none was to be stored.';
