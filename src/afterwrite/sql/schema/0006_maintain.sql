-- What maintenance of the store remembers: which days retention has taken, where the feed begins since, and how far the
-- readers of the feed have come who must not find it empty.

create table afterwrite.expired_day (
    day            date        not null,
    rows           bigint      not null default 0,
    bytes          bigint      not null default 0,
    first_position bigint,
    last_position  bigint,
    detached_at    timestamptz not null default clock_timestamp(),
    dropped_at     timestamptz,
    constraint expired_day_pkey primary key (day),
    constraint expired_day_counts check (rows >= 0 and bytes >= 0),
    constraint expired_day_positions_in_order check (first_position <= last_position)
);
comment on table afterwrite.expired_day is
    'A day (UTC) whose activity retention has taken out of the store. Where its batches are still kept they say what it held: rows_digest sums the rows of each, so an archived copy can be checked against them.';
comment on column afterwrite.expired_day.rows is 'Rows that were dropped; rows that came late, and went later, are added.';
comment on column afterwrite.expired_day.bytes is 'What its partition took on disk, indexes and TOAST included.';
comment on column afterwrite.expired_day.first_position is 'The first batch of the feed that had rows of this day.';
comment on column afterwrite.expired_day.dropped_at is 'Null between the detaching of its partition (readers do not see it any more) and the dropping.';

create table afterwrite.feed_start (
    only_row boolean not null default true,
    position bigint  not null default 0,
    constraint feed_start_pkey primary key (only_row),
    constraint feed_start_has_one_row check (only_row),
    constraint feed_start_never_negative check (position >= 0)
);
comment on table afterwrite.feed_start is
    'Batches up to this position are expired: beyond it positions are gapless. Of those before it each source''s newest is kept, to which the next one is chained, and any that still has rows.';
insert into afterwrite.feed_start default values;

create table afterwrite.feed_reader (
    source     text        not null,
    position   bigint,
    commit_lsn pg_lsn,
    told_at    timestamptz not null default clock_timestamp(),
    constraint feed_reader_pkey primary key (source),
    constraint feed_reader_has_both check ((position is null) = (commit_lsn is null))
);
comment on table afterwrite.feed_reader is
    'How far the deferred bodies of each source have read the feed, as that source''s maintenance told last (their progress lives in the source database). Null: nothing was ever deferred. Retention takes no day beyond.';
