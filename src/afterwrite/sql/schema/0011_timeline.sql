-- Two small indexes for what the entity index cannot find: that a row went without a word under its own id, and what came
-- of an activity later than at once. Those of each day's partition are in store/partitions.py.

create index activity_default_gone on afterwrite.activity_default
    (entity_type, left(metadata ->> 'entity_was', 400), occurred_at desc)
    where operation = 'truncate' or (operation = 'update' and (metadata ->> 'entity_was') is not null);
comment on index afterwrite.activity_default_gone is
    'Ways in which a row goes that do not carry its id: a TRUNCATE of its table, and an UPDATE of its key. They are few.';

create index activity_default_cause on afterwrite.activity_default (caused_by)
    where caused_by is not null and (kind = 'event' or left(caused_by::text, 11) <> left(id::text, 11));
comment on index afterwrite.activity_default_cause is
    'What an activity led to. Changes within the quarter of a second (256 ms) of their cause are found by the time that both ids begin with, and left out: most are, and would cost the writer most of this index.';
