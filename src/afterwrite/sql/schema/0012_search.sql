-- An index for what stands in metadata. Most activities have none, and cost nothing here; that of each day's partition is in
-- store/partitions.py.

create index activity_default_facts on afterwrite.activity_default
    using gin ((metadata::jsonb) jsonb_path_ops) with (fastupdate = on, gin_pending_list_limit = 1024)
    where metadata is not null;
comment on index afterwrite.activity_default_facts is 'Each value in metadata with the path to it, by a hash of both.';
