-- What left the store for the lake: each part of a day that is there, and since when the store has it no more.

create table afterwrite.lake_part (
    day         date        not null,
    part        integer     not null,
    lake        text        not null,
    rows        bigint      not null,
    known       bigint      not null,
    bytes       bigint      not null,
    digest      bytea       not null,
    version     bigint      not null,
    archived_at timestamptz not null default clock_timestamp(),
    left_at     timestamptz,
    constraint lake_part_pkey primary key (day, part),
    constraint lake_part_counts_from_one check (part >= 1),
    constraint lake_part_counts check (rows >= 0 and known >= 0 and bytes >= 0 and version >= 0),
    constraint lake_part_digest_is_256_bits check (octet_length(digest) = 32)
);
comment on table afterwrite.lake_part is
    'What was copied from a day (UTC) into the lake, and read back from there with the same count and digest. A day has several parts where rows of it came later.';
comment on column afterwrite.lake_part.lake is 'Which Delta table: the id in its own log.';
comment on column afterwrite.lake_part.rows is 'Rows that this part brought into the lake.';
comment on column afterwrite.lake_part.known is 'Rows of the day''s table that were in the lake already, the same to the byte.';
comment on column afterwrite.lake_part.digest is 'The sum of the sha256 of each of its rows, modulo 2^256, as both sides made it.';
comment on column afterwrite.lake_part.version is 'The version of the Delta table from which on it is in there.';
comment on column afterwrite.lake_part.left_at is
    'When the table it was copied from left afterwrite.activity. From then on the lake alone has these rows.';
