-- name: read_window
-- How far the prover has come and what its counts cover.
select number, started_lsn::text as started_lsn, started_at, through_lsn::text as through_lsn, through_at, observed, transactions
  from afterwrite.proof_window;

-- name: read_triggers
-- The triggers that are watched and what is expected of them.
select trigger, mode, operations, mapping::text as mapping, overrides::text as overrides, notes, present, silenced,
       silenced_mode, version, version_lsn::text as version_lsn, since_at, since_transactions
  from afterwrite.proof_trigger
 order by trigger;

-- name: read_plan
-- What the plan says of triggers otherwise than scan and their own INSERTs do.
select trigger, mode, overrides::text as overrides
  from afterwrite.proof_plan
 order by trigger;

-- name: forget_plan
-- The plan says nothing any more of these triggers.
delete from afterwrite.proof_plan
 where trigger = any (:triggers::text[]);

-- name: save_plan
-- What the plan says of these triggers from here on.
insert into afterwrite.proof_plan as p (trigger, mode, overrides)
select trigger, mode, overrides
  from jsonb_to_recordset(:planned::text::jsonb) as t (trigger text, mode text, overrides jsonb)
on conflict (trigger) do update
   set mode = excluded.mode,
       overrides = excluded.overrides,
       adopted_at = excluded.adopted_at;

-- name: renew_window
-- What is compared changes: whoever counted by the old number begins again after the watermark.
update afterwrite.proof_window
   set number = number + 1;

-- name: renew_triggers
-- What was counted of these triggers was counted by another mapping: their own window begins here.
update afterwrite.proof_trigger t
   set since_at = w.through_at,
       since_transactions = w.transactions
  from afterwrite.proof_window w
 where t.trigger = any (:triggers::text[]);

-- name: forget_counts
-- Drop what was counted of these triggers.
delete from afterwrite.proof
 where trigger = any (:triggers::text[]);

-- name: forget_examples
-- Drop their examples.
delete from afterwrite.residual
 where trigger = any (:triggers::text[]);

-- name: read_working
-- Triggers that were seen writing their legacy row, with the operation.
select p.trigger, p.operation
  from afterwrite.proof p
 where p.rows > 0;

-- name: read_versions
-- Row versions of triggers, their clones and their functions, and a place in the WAL by which they surely hold.
with recursive wanted as (
    select w.identity, t.oid
      from unnest(:identities::text[], :schemas::text[], :tables::text[], :names::text[])
             as w (identity, "schema", "table", "name")
      join pg_catalog.pg_namespace n on n.nspname = w."schema"
      join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = w."table"
      join pg_catalog.pg_trigger t on t.tgrelid = c.oid and t.tgname = w."name"
    union all
    select w.identity, t.oid
      from wanted w
      join pg_catalog.pg_trigger t on t.tgparentid = w.oid
)
select w.identity,
       string_agg(format('%s.%s.%s.%s', t.oid, t.xmin, t.tgenabled, p.xmin), ' ' order by t.oid) as version,
       bool_and(t.tgenabled = 'O') as origin,
       pg_catalog.pg_current_wal_insert_lsn()::text as lsn
  from wanted w
  join pg_catalog.pg_trigger t on t.oid = w.oid
  join pg_catalog.pg_proc p on p.oid = t.tgfoid
 group by w.identity;

-- name: advance_window
-- Move the watermark, if window and watermark are still what the prover thinks they are.
update afterwrite.proof_window
   set through_lsn = :lsn::text::pg_lsn,
       through_at = greatest(through_at, :at::timestamptz),
       started_at = case when :observed::bigint > 0 then coalesce(started_at, :first_at::timestamptz) else started_at end,
       observed = observed + :observed,
       transactions = transactions + :transactions
 where number = :number
   and through_lsn is not distinct from :through::text::pg_lsn;

-- name: add_proof
-- Add a batch's tallies to what is there.
insert into afterwrite.proof as p
       (trigger, operation, seen, matched, rows, exact, partly, uncompared, first_at, first_lsn, last_at, last_lsn)
select trigger, operation, seen, matched, rows, exact, partly, uncompared, first_at, first_lsn, last_at, last_lsn
  from jsonb_to_recordset(:tallies::text::jsonb) as t (
         trigger text, operation text, seen bigint, matched bigint, rows bigint, exact bigint, partly bigint,
         uncompared bigint, first_at timestamptz, first_lsn pg_lsn, last_at timestamptz, last_lsn pg_lsn)
on conflict (trigger, operation) do update
   set seen = p.seen + excluded.seen,
       matched = p.matched + excluded.matched,
       rows = p.rows + excluded.rows,
       exact = p.exact + excluded.exact,
       partly = p.partly + excluded.partly,
       uncompared = p.uncompared + excluded.uncompared,
       last_at = excluded.last_at,
       last_lsn = excluded.last_lsn;

-- name: add_reasons
-- Add a batch's reasons to what is there.
insert into afterwrite.proof_reason as p (trigger, operation, reason, count)
select trigger, operation, reason, count
  from jsonb_to_recordset(:reasons::text::jsonb) as t (trigger text, operation text, reason text, count bigint)
on conflict (trigger, operation, reason) do update
   set count = p.count + excluded.count;

-- name: add_residuals
-- Keep new examples.
insert into afterwrite.residual
       (trigger, operation, reason, xid, commit_lsn, committed_at, key, before, after, legacy, expected, differences)
select trigger, operation, reason, xid, commit_lsn, committed_at, key, before, after, legacy, expected, differences
  from jsonb_to_recordset(:residuals::text::jsonb) as t (
         trigger text, operation text, reason text, xid bigint, commit_lsn pg_lsn, committed_at timestamptz, key text,
         before text, after text, legacy text, expected text, differences jsonb);

-- name: prune_residuals
-- Leave the newest few examples of each trigger, operation and reason.
delete from afterwrite.residual
 where id in (
         select id
           from (select id, row_number() over (
                          partition by trigger, operation, reason order by commit_lsn desc, id desc) as place
                   from afterwrite.residual) ranked
          where place > :keep::integer);

-- name: save_triggers
-- Remember the watched triggers as they are expected to be from here on.
insert into afterwrite.proof_trigger as p
       (trigger, mode, operations, mapping, overrides, notes, present, silenced, silenced_mode, silenced_lsn, version,
        version_lsn)
select trigger, mode, operations, mapping, overrides, notes, present, silenced, silenced_mode, silenced_lsn, version,
       version_lsn
  from jsonb_to_recordset(:triggers::text::jsonb) as t (
         trigger text, mode text, operations text[], mapping jsonb, overrides jsonb, notes text[], present boolean,
         silenced boolean, silenced_mode text, silenced_lsn pg_lsn, version text, version_lsn pg_lsn)
on conflict (trigger) do update
   set mode = excluded.mode,
       operations = excluded.operations,
       mapping = excluded.mapping,
       overrides = excluded.overrides,
       notes = excluded.notes,
       present = excluded.present,
       silenced = excluded.silenced,
       silenced_mode = excluded.silenced_mode,
       silenced_lsn = excluded.silenced_lsn,
       version = excluded.version,
       version_lsn = excluded.version_lsn;

-- name: forget_proof
-- Drop what the window has counted.
delete from afterwrite.proof;

-- name: forget_rehearsals
-- And what was rehearsed of deferred bodies.
delete from afterwrite.rehearsal;

-- name: forget_since
-- All triggers' counts are from the window's start again.
update afterwrite.proof_trigger
   set since_at = null, since_transactions = 0
 where since_at is not null or since_transactions > 0;

-- name: read_rehearsals
-- What running transplanted bodies on real transactions, and undoing it, has shown in this window.
select trigger, operation, outcome, count, example::text as example
  from afterwrite.rehearsal
 order by trigger, operation, outcome;

-- name: forget_residuals
-- Drop the examples too.
delete from afterwrite.residual;

-- name: forget_other_history
-- Begin anew where the window speaks of positions that this cluster has not come to: a restored dump, a disk set back.
update afterwrite.proof_window
   set number = number + 1,
       started_lsn = pg_catalog.pg_current_wal_insert_lsn(),
       started_at = null,
       through_lsn = null,
       through_at = null,
       observed = 0,
       transactions = 0
 where greatest(started_lsn, through_lsn) > pg_catalog.pg_current_wal_insert_lsn();

-- name: begin_window
-- Count anew, from transactions that commit from now on.
update afterwrite.proof_window
   set number = number + 1,
       started_lsn = pg_catalog.pg_current_wal_insert_lsn(),
       started_at = null,
       observed = 0,
       transactions = 0;

-- name: read_tallies
-- What was counted of each trigger and operation.
select trigger, operation, seen, matched, rows, exact, partly, uncompared,
       first_at, first_lsn::text as first_lsn, last_at, last_lsn::text as last_lsn,
       coalesce((select jsonb_object_agg(r.reason, r.count)
                   from afterwrite.proof_reason r
                  where r.trigger = p.trigger and r.operation = p.operation), '{}')::text as reasons
  from afterwrite.proof p
 order by trigger, operation;

-- name: read_residuals
-- The examples, newest first.
select trigger, operation, reason, xid, commit_lsn::text as commit_lsn, committed_at, key, before, after, legacy,
       expected, differences::text as differences
  from afterwrite.residual
 order by trigger, operation, reason, commit_lsn desc, id desc;

-- name: judge_mark
-- Whether a mark is the word of a deed that the ledger tells of (told), is nobody's (forged), or is not to be known yet (open).
select afterwrite.judge_mark(:identity, :action, :xid);

-- name: read_filling
-- Whose rows a transaction (its id is the WAL's, without the epoch) filled afterwards, and whether that can be seen yet.
with ahead as (
    select pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::bigint + 2147483648 as xid
), filling as (
    select greatest(xid - mod(xid - :xid::bigint, 4294967296), 0) as xid from ahead
)
select pg_catalog.pg_visible_in_snapshot(f.xid::text::xid8, pg_catalog.pg_current_snapshot()) as visible,
       array(select distinct name
               from afterwrite.backfilled b, unnest(b.identities) as name
              where b.xid = f.xid) as identities
  from filling f;

-- name: read_columns
-- The columns of these tables (quoted names), as the stream would tell them, and which belong to their primary key.
select w.name as relation, c.oid::bigint as oid, n.nspname as schema, c.relname as table, c.relreplident::text as replica_identity,
       a.attname as column, a.atttypid::bigint as type_oid, a.atttypmod as type_modifier,
       coalesce(a.attnum = any (i.indkey), false) as key
  from unnest(:names::text[]) as w (name)
  join pg_catalog.pg_class c on c.oid = pg_catalog.to_regclass(w.name)
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  left join pg_catalog.pg_index i on i.indrelid = c.oid and i.indisprimary
 order by w.name, a.attnum;

-- name: read_position_before
-- The place in the feed behind which the changes after a place in the WAL are.
select coalesce(max(position), 0)
  from afterwrite.batch
 where source = :source and last_lsn <= :after::text::pg_lsn;

-- name: gather_fillings
-- The transactions that filled a window: an empty place for them, for the rest of the transaction.
create temporary table afterwrite_filling (
    xid        bigint primary key,
    commit_lsn pg_lsn not null,
    following  bigint not null
) on commit drop;

-- name: add_fillings
-- Each with the commit that it filled, and the next one's id: ids between the two may be of its own exception handlers.
insert into pg_temp.afterwrite_filling
select xid, commit_lsn, least(coalesce(lead(xid) over (order by xid), xid + 10000), xid + 10000)
  from afterwrite.backfilled
 where source = :source
   and commit_lsn > :after::text::pg_lsn
   and commit_lsn < :until::text::pg_lsn;

-- name: read_span
-- Which transaction this is, and between which ids the fillings of the window wrote.
select pg_catalog.pg_current_xact_id()::text::bigint as now, min(xid) as first, max(following) as last
  from pg_temp.afterwrite_filling;

-- name: gather_filled
-- What fillings of a window wrote: an empty place for it, for the rest of the transaction.
create temporary table afterwrite_filled (
    commit_lsn pg_lsn,
    legacy     text,
    sure       boolean,
    row        text
) on commit drop;

-- name: index_filled
-- Read by the commit that a row was written for.
create index on pg_temp.afterwrite_filled (commit_lsn);

-- name: read_filled
-- The rows that were written for these commits.
select commit_lsn::text as commit_lsn, legacy, sure, row
  from pg_temp.afterwrite_filled
 where commit_lsn between :first::text::pg_lsn and :last::text::pg_lsn
 order by commit_lsn;
