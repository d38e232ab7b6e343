-- name: set_path
-- Another search path for the rest of the transaction (with pg_catalog alone, names print with their schemas); says what it was.
select pg_catalog.current_setting('search_path'), pg_catalog.set_config('search_path', :path, true);

-- name: read_table
-- What a trigger's table is now.
select c.oid::bigint as oid,
       n.nspname as schema,
       c.relname as name,
       c.relkind::text as kind,
       c.relpersistence::text as persistence,
       c.relreplident::text as replica_identity,
       c.relispartition as is_partition,
       afterwrite.table_shape(c.oid) as shape
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where c.oid = :oid::oid;

-- name: read_columns
-- The columns of a table, in order, with their types by qualified name.
select a.attname as name,
       pg_catalog.format_type(a.atttypid, a.atttypmod) as type,
       a.attgenerated::text as generated,
       case when a.attgenerated <> '' then pg_catalog.pg_get_expr(d.adbin, d.adrelid) end as expression
  from pg_catalog.pg_attribute a
  left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
 where a.attrelid = :oid::oid and a.attnum > 0 and not a.attisdropped
 order by a.attnum;

-- name: read_apart
-- The partitions in which a trigger does not fire for ordinary sessions, where it does in others.
with recursive tree as (
    select t.oid, t.tgrelid, t.tgenabled from pg_catalog.pg_trigger t where t.oid = :oid::oid
    union all
    select c.oid, c.tgrelid, c.tgenabled from pg_catalog.pg_trigger c join tree on c.tgparentid = tree.oid
), leaf as (
    select tree.tgrelid, tree.tgenabled in ('O', 'A') as fires
      from tree
      join pg_catalog.pg_class r on r.oid = tree.tgrelid and r.relkind <> 'p'
)
select pg_catalog.format('%I.%I', n.nspname, r.relname)
  from leaf
  join pg_catalog.pg_class r on r.oid = leaf.tgrelid
  join pg_catalog.pg_namespace n on n.oid = r.relnamespace
 where not leaf.fires and exists (select from leaf other where other.fires)
 order by 1;

-- name: read_clock_defaults
-- Columns of these tables (named as on the path that is set) whose default is the time.
select pg_catalog.format('%I.%I', n.nspname, c.relname) as relation, a.attname as name
  from unnest(:names::text[]) as w (name)
  join pg_catalog.pg_class c on c.oid = pg_catalog.to_regclass(w.name)
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
  join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
 where pg_catalog.pg_get_expr(d.adbin, d.adrelid)
       ~* '(pg_catalog\.)?\m(now|transaction_timestamp|statement_timestamp|current_(timestamp|date|time)|localtime(stamp)?)\M'
   and not exists (
       select from pg_catalog.pg_depend o
         join pg_catalog.pg_proc f on f.oid = o.refobjid and f.pronamespace = 'afterwrite_clock'::regnamespace
        where o.classid = 'pg_catalog.pg_attrdef'::regclass and o.objid = d.oid
          and o.refclassid = 'pg_catalog.pg_proc'::regclass)
 order by 1, a.attnum;

-- name: read_default_path
-- The search path of those who write here: what the database sets, else what this server gives a new session.
select coalesce(
    (select split_part(item, '=', 2)
       from pg_catalog.pg_db_role_setting s, unnest(s.setconfig) as item
      where s.setdatabase = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
        and s.setrole = 0
        and item like 'search_path=%'),
    (select reset_val from pg_catalog.pg_settings where name = 'search_path')
);

-- name: read_live
-- Whether the body of this trigger runs after commit now, and how many of its failures wait.
select (select count(*) from afterwrite.deferral d
         where d.source = :source and d.identity = :identity and d.state = 'live') as live,
       (select count(*) from afterwrite.dead_letter l
         where l.source = :source and l.identity = :identity and l.resolved_at is null) as parked;

-- name: read_droppable
-- Deferrals of a trigger whose functions are there and do not run.
select id, body
  from afterwrite.deferral
 where source = :source and identity = :identity and state in ('prepared', 'ended');

-- name: rename_relation
-- The functions of this deferral are made for the name that its table has now.
update afterwrite.deferral set relations = array_append(relations, :relation) where id = :id;

-- name: mark_dropped
-- The functions of these deferrals are gone.
update afterwrite.deferral set state = 'dropped' where id = any (:ids);

-- name: read_deferrals
-- What runs now or may begin to, with the name that its table has now.
select d.id, d.source, d.identity, d.body, d.run, d.relations, d.path, d.on_error, d.state, d.definition::text as definition,
       d.table_oid::bigint as table_oid, n.nspname as schema_now, c.relname as table_now
  from afterwrite.deferral d
  left join pg_catalog.pg_class c on c.oid = d.table_oid
  left join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where d.source = :source and d.state in ('prepared', 'live')
 order by d.id;

-- name: read_active
-- Which deferrals there are, in what state, and what their tables are called now.
select d.id, d.table_oid::bigint as table_oid, d.state, n.nspname as schema_now, c.relname as table_now
  from afterwrite.deferral d
  left join pg_catalog.pg_class c on c.oid = d.table_oid
  left join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where d.source = :source and d.state in ('prepared', 'live')
 order by d.id;

-- name: read_names
-- Which tables had the names that these tables ever had, from which commit on.
select n.relation, n.since_lsn::text as since_lsn, n.oid::bigint as oid
  from afterwrite.relation_name n
 where n.relation in (select o.relation from afterwrite.relation_name o where o.oid = any (:oids::bigint[]::oid[])
                      union
                      select unnest(d.relations) from afterwrite.deferral d where d.table_oid = any (:oids::bigint[]::oid[]))
 order by n.relation, n.since_lsn;

-- name: judge_mark
-- Whether a mark is the word of a deed that the ledger tells of (told), is nobody's (forged), or is not to be known yet (open).
select afterwrite.judge_mark(:identity, :action, :xid);

-- name: begin_deferral
-- A trigger was silenced here: from now on its body is ours (it may be already, where it was silenced twice).
with begun as (
    update afterwrite.deferral
       set state = 'live', since_lsn = :lsn::pg_lsn
     where source = :source and state = 'prepared' and (trigger_oid = :trigger_oid::oid or identity = :identity)
    returning id
)
select id from begun
 union
select id
  from afterwrite.deferral
 where source = :source and state = 'live' and (trigger_oid = :trigger_oid::oid or identity = :identity);

-- name: end_deferral
-- A trigger was restored here: from now on its body is its own again.
update afterwrite.deferral
   set state = 'ended', until_lsn = :lsn::pg_lsn
 where source = :source and state = 'live' and (trigger_oid = :trigger_oid::oid or identity = :identity)
returning id;

-- name: lock_replayer
-- Be the only replayer of this source; the lock ends with the session.
select pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended('afterwrite.defer.' || :source, 0));

-- name: read_progress
-- How far deferred bodies have run.
select position, commit_lsn::text as commit_lsn, transactions, calls, parked
  from afterwrite.deferral_progress
 where source = :source;

-- name: lock_progress
-- How far deferred bodies have run; nobody moves it until this transaction ends.
select position, commit_lsn::text as commit_lsn, transactions, calls, parked
  from afterwrite.deferral_progress
 where source = :source
   for update;

-- name: begin_progress
-- Nothing was ever deferred here: begin at the feed's end.
insert into afterwrite.deferral_progress (source, position, commit_lsn)
values (:source, :position, :commit_lsn::pg_lsn)
on conflict (source) do nothing;

-- name: move_progress
-- Pass over what concerns no deferral; no row comes back when the progress is not where we left it.
update afterwrite.deferral_progress
   set position = :position, commit_lsn = greatest(commit_lsn, :commit_lsn::pg_lsn), updated_at = pg_catalog.clock_timestamp()
 where source = :source and commit_lsn = :after::pg_lsn and position <= :position
returning source;

-- name: read_batch_end
-- Where a batch ends in the WAL, if the feed has it.
select b.last_lsn::text as last_lsn from afterwrite.batch b where b.source = :source and b.position = :position;

-- name: turn_progress
-- The same place, by the positions of another feed; no row comes back when the progress is not where we found it.
update afterwrite.deferral_progress
   set position = :position
 where source = :source and commit_lsn = :commit_lsn::pg_lsn and position = :known_as
returning source;

-- name: set_progress
-- Move the progress that this transaction has locked.
update afterwrite.deferral_progress
   set position = :position, commit_lsn = :commit_lsn::pg_lsn, updated_at = pg_catalog.clock_timestamp()
 where source = :source;

-- name: write_halt
-- Say where the stream stands and why; it goes when the next transaction has run.
update afterwrite.deferral_progress
   set halted_lsn = :lsn::pg_lsn, trouble = :trouble
 where source = :source and (halted_lsn, trouble) is distinct from (:lsn::pg_lsn, :trouble);

-- name: run_jobs
-- Run the bodies of several source transactions, each in a transaction of its own.
call afterwrite.run_deferred_each(:jobs::jsonb);

-- name: forget_session
-- Forget what bodies set for this session.
call afterwrite.forget_session();

-- name: run_job
-- Run the bodies of one source transaction, or a piece of them.
select ran, parked from afterwrite.run_deferred(:job::jsonb, :guarded);

-- name: read_dead_letters
-- Calls that failed (of one trigger) and wait, in the order in which they were to run; those that are resolved, too.
select id, identity, deferral_id, activity_id::text as activity_id, commit_lsn::text as commit_lsn, ordinal, committed_at,
       operation, sqlstate, error, attempts, parked_at, resolved_at, resolution
  from afterwrite.dead_letter
 where source = :source and (resolved_at is null or :resolved) and identity = coalesce(:identity, identity)
 order by dead_letter.commit_lsn, ordinal, id;

-- name: read_dead_letter
-- All of one.
select id, identity, deferral_id, run, activity_id::text as activity_id, commit_lsn::text as commit_lsn, ordinal, committed_at,
       operation, before::text as before, after::text as after, context, settings::text as settings, role, sqlstate, error,
       detail, attempts, parked_at, resolved_at, resolution
  from afterwrite.dead_letter
 where source = :source and id = :id;

-- name: note_attempt
-- It was tried again and failed again, as this says.
update afterwrite.dead_letter set attempts = attempts + 1, error = :error where id = :id and resolved_at is null;

-- name: skip_halt
-- Let the failing calls of the transaction at which the stream stands be parked.
with standing as (
    select halted_lsn from afterwrite.deferral_progress where source = :source and halted_lsn is not null
), told as (
    update afterwrite.deferral d set skip_lsn = s.halted_lsn from standing s where d.source = :source and d.state = 'live'
)
select halted_lsn::text from standing;

-- name: read_renewable
-- Deferrals whose bodies may still run: live ones, and those that failed calls wait for.
select d.id
  from afterwrite.deferral d
 where d.source = :source
   and (d.state in ('prepared', 'live')
        or exists (select from afterwrite.dead_letter l where l.deferral_id = d.id and l.resolved_at is null));

-- name: renew_definition
-- From now on this is its body.
update afterwrite.deferral set definition = :definition::jsonb where id = :id;

-- name: read_standing
-- How deferred bodies stand: how far they are, what they did, and where they halted.
select position, commit_lsn::text as commit_lsn, transactions, calls, parked, updated_at, halted_lsn::text as halted_lsn,
       trouble,
       exists (select from pg_catalog.pg_locks l
                where l.locktype = 'advisory' and l.granted and l.objsubid = 1
                  and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
                  and (l.classid::bigint << 32) | l.objid::bigint
                      = pg_catalog.hashtextextended('afterwrite.defer.' || :source, 0)) as running
  from afterwrite.deferral_progress
 where source = :source;

-- name: read_deferred
-- The triggers whose bodies run after commit, or did, or are prepared to, and how many of their calls wait.
select d.identity, d.mode, d.on_error, d.state, d.since_lsn::text as since_lsn, d.until_lsn::text as until_lsn,
       d.relations[cardinality(d.relations)] as relation,
       (select count(*) from afterwrite.dead_letter l where l.deferral_id = d.id and l.resolved_at is null) as parked
  from afterwrite.deferral d
 where d.source = :source
   and (d.state in ('prepared', 'live')
        or exists (select from afterwrite.dead_letter l where l.deferral_id = d.id and l.resolved_at is null))
 order by d.identity, d.id;

-- name: retry_dead_letter
-- Run a parked call again, in this transaction.
select afterwrite.retry_dead_letter(:id);

-- name: skip_dead_letter
-- Give a parked call up.
update afterwrite.dead_letter
   set resolved_at = pg_catalog.clock_timestamp(), resolution = 'skipped'
 where id = :id and resolved_at is null;

-- name: listen_to_feed
-- Be woken when a batch is stored, where the sink says so.
listen afterwrite_feed;

-- name: read_feed_end
-- The newest batch of a source.
select b.position, coalesce(b.last_lsn, '0/0')::text as commit_lsn
  from afterwrite.batch b
 where b.source = :source
 order by b.position desc
 limit 1;

-- name: read_position_at
-- The last batch that lies wholly at or before a place in the WAL.
select coalesce(max(b.position), 0) from afterwrite.batch b where b.source = :source and b.last_lsn <= :lsn::pg_lsn;

-- name: count_waiting
-- Batches that deferred bodies have not passed, as far as a place in the WAL, and how old the oldest of them is. A position
-- that is not this feed's (it was restored from a backup) is none.
select count(*) as batches, min(b.first_at) as oldest_at
  from afterwrite.batch b
 where b.source = :source
   and b.position > coalesce(
           (select k.position
              from afterwrite.batch k
             where k.position = :position and (k.source <> :source or k.last_lsn <= :commit_lsn::pg_lsn)),
           0)
   and b.last_lsn > :commit_lsn::pg_lsn
   and b.first_lsn <= coalesce(:lsn::pg_lsn, b.first_lsn);

-- name: read_wal_lsn
-- The end of the WAL now.
select pg_catalog.pg_current_wal_insert_lsn()::text;

-- name: nudge_capture
-- Let the store's checkpoint pass this place even when nobody writes any more.
select pg_catalog.pg_logical_emit_message(true, :prefix, 'settle')::text;

-- name: read_deferrals_of
-- These deferrals, with the names that their tables have now.
select d.id, d.source, d.identity, d.body, d.run, d.relations, d.path, d.on_error, d.state, d.definition::text as definition,
       d.table_oid::bigint as table_oid, n.nspname as schema_now, c.relname as table_now
  from afterwrite.deferral d
  left join pg_catalog.pg_class c on c.oid = d.table_oid
  left join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where d.id = any (:ids::bigint[])
 order by d.id;

-- name: read_kept
-- Those of these triggers whose bodies ran after commit all along since they were silenced there.
select d.identity
  from afterwrite.deferral d
 where d.source = :source and d.identity = any (:identities::text[]) and d.since_lsn = :after::pg_lsn
   and not exists (select from afterwrite.backfill b where b.deferral_id = d.id);

-- name: read_fillings
-- How far the window after a silencing is filled for these triggers.
select id, identity, reached_lsn::text as reached, deferral_id, ended_at::text as ended_at
  from afterwrite.backfill
 where source = :source and identity = any (:identities::text[]) and after_lsn = :after::pg_lsn
 order by id;

-- name: begin_filling
-- A body will fill this window: its deferral is over before it began, and its own progress stands at the beginning.
with made as (
    insert into afterwrite.deferral
        (source, identity, trigger_oid, table_oid, relations, body, run, definition, path, mode, state, since_lsn, until_lsn)
    values (
        :source, :identity, :trigger_oid::oid, :table_oid::oid, :relations, :body, :run, :definition::jsonb, :path,
        'retire', 'ended', :after::pg_lsn, :until::pg_lsn)
    returning id
)
insert into afterwrite.backfill (source, identity, after_lsn, until_lsn, reached_lsn, deferral_id)
select :source, :identity, :after::pg_lsn, :until::pg_lsn, :after::pg_lsn, id from made;

-- name: fill_jobs
-- Fill for several source transactions, each in a transaction of its own.
call afterwrite.run_backfill_each(:jobs::jsonb, :fillings::bigint[]);

-- name: fill_job
-- Fill for one source transaction, or a piece of it.
select ran, parked from afterwrite.run_backfill(:job::jsonb, :guarded, :fillings::bigint[]);

-- name: read_filled
-- How far these fillings are.
select min(reached_lsn)::text from afterwrite.backfill where id = any (:ids::bigint[]);

-- name: count_filled
-- What the marks of a window say, and which calls failed.
select count(*) as transactions, coalesce(sum(f.calls), 0)::bigint as calls, coalesce(sum(f.rows), 0)::bigint as rows,
       (select count(*)
          from afterwrite.dead_letter l
          join afterwrite.backfill b on b.deferral_id = l.deferral_id
         where b.source = :source and b.identity = any (:identities::text[]) and b.after_lsn = :after::pg_lsn
           and l.resolved_at is null) as parked
  from afterwrite.backfilled f
 where f.source = :source and f.commit_lsn > :after::pg_lsn and f.commit_lsn < :until::pg_lsn
   and f.identities && :identities::text[];

-- name: end_fillings
-- All of these windows is filled.
update afterwrite.backfill
   set reached_lsn = :until::pg_lsn, ended_at = pg_catalog.clock_timestamp()
 where id = any (:ids::bigint[]) and ended_at is null;

-- name: read_waiting_deferrals
-- Those of these deferrals that failed calls wait for.
select distinct deferral_id from afterwrite.dead_letter where deferral_id = any (:ids::bigint[]) and resolved_at is null;

-- name: read_rehearsals
-- What has come of rehearsals.
select trigger, operation, outcome, count, last_lsn::text as last_lsn, last_at, example::text as example
  from afterwrite.rehearsal
 order by trigger, operation, outcome;

-- name: note_rehearsals
-- Count what came of some, each with its newest example.
insert into afterwrite.rehearsal as r (trigger, operation, outcome, count, last_lsn, last_at, example)
select n.trigger, n.operation, n.outcome, count(*), max(n.lsn), max(n.at),
       (array_agg(nullif(n.example, 'null') order by n.lsn desc))[1]
  from pg_catalog.jsonb_to_recordset(:rehearsals::jsonb)
       as n (trigger text, operation text, outcome text, lsn pg_lsn, at timestamptz, example jsonb)
 group by n.trigger, n.operation, n.outcome
    on conflict (trigger, operation, outcome) do update
   set count = r.count + excluded.count, last_lsn = excluded.last_lsn, last_at = excluded.last_at,
       example = excluded.example;

-- name: read_on
-- Which of these triggers fire for ordinary sessions now, and the bodies that they have.
select t.oid::bigint as oid, p.prosrc as source, t.tgenabled in ('O', 'A') as on
  from pg_catalog.pg_trigger t
  join pg_catalog.pg_proc p on p.oid = t.tgfoid
 where t.oid = any (:oids::bigint[]::oid[]);

-- name: count_rehearsed
-- Count so many transactions as rolled back by us.
update afterwrite.rehearsed r set transactions = r.transactions + :transactions;

-- name: rehearse
-- Run the bodies that a transaction calls, in a transaction that will be undone.
select ran from afterwrite.run_calls(:job::jsonb, false);

-- name: read_transaction_time
-- When this transaction began.
select pg_catalog.transaction_timestamp();

-- name: set_replication_role
-- Whether triggers fire for what follows in this transaction.
select pg_catalog.set_config('session_replication_role', :role, true);

-- name: read_sequence
-- The last value that a sequence gave.
select pg_catalog.pg_sequence_last_value(:sequence::regclass);

-- name: count_writes
-- What this transaction has written to a table and its partitions, undone savepoints included.
select coalesce(sum(pg_catalog.pg_stat_get_xact_tuples_inserted(r.oid)), 0)::bigint as inserted,
       coalesce(sum(pg_catalog.pg_stat_get_xact_tuples_updated(r.oid)), 0)::bigint as updated,
       coalesce(sum(pg_catalog.pg_stat_get_xact_tuples_deleted(r.oid)), 0)::bigint as deleted
  from (select :oid::oid union select relid::oid from pg_catalog.pg_partition_tree(:oid::oid)) as r (oid);

-- name: read_effect_table
-- A table that a body writes: its key, the sequence that fills it, and whether some publication of ours sends it.
select c.oid::bigint as oid, s.nspname as schema, c.relname as name, c.relpages as pages,
       array(select a.attname::text
               from pg_catalog.pg_index x
               cross join unnest(x.indkey::smallint[]) with ordinality as k (attnum, n)
               join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
              where x.indrelid = c.oid and x.indisprimary
              order by k.n) as key,
       (select pg_catalog.pg_get_serial_sequence(c.oid::regclass::text, a.attname)
          from pg_catalog.pg_index x
          join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = x.indkey[0]
         where x.indrelid = c.oid and x.indisprimary and x.indnkeyatts = 1) as sequence,
       :publication::text is null
       or exists (select from pg_catalog.pg_publication_rel r
                    join pg_catalog.pg_publication p on p.oid = r.prpubid
                   where r.prrelid = c.oid and p.pubname = :publication) as captured
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace s on s.oid = c.relnamespace
 where c.oid = pg_catalog.to_regclass(:relation) and c.relkind in ('r', 'p');

-- name: read_effect_columns
-- Its columns, and which of them fill themselves with something that is no constant.
select a.attname as name, a.attgenerated <> '' as generated,
       a.attidentity <> ''
       or coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid) ~* '(\(|current_|localtime)', false) as fills_itself
  from pg_catalog.pg_attribute a
  left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum and a.attgenerated = ''
 where a.attrelid = :oid::oid and a.attnum > 0 and not a.attisdropped
 order by a.attnum;

-- name: enter_original
-- Settings as in the original transaction, for a rehearsal.
select afterwrite.enter_original(:settings::jsonb, :committed_at, null)::text;
