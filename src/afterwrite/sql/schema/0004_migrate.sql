-- What a migration did, kept in the database whose triggers it moves: every row is written in the same transaction as
-- the deed that it tells of.

create table afterwrite.migration (
    id          bigint primary key,
    plan        text not null,
    actor       text not null default session_user,
    operator    text default nullif(pg_catalog.current_setting('afterwrite.operator', true), ''),
    started_at  timestamptz not null default pg_catalog.clock_timestamp(),
    finished_at timestamptz,
    outcome     text,
    constraint migration_outcome check (outcome in ('rolled back')),
    constraint migration_finished_with_outcome check ((finished_at is null) = (outcome is null))
);
comment on table afterwrite.migration is
    'One run of a plan, from its first silenced table until all of it is rolled back.';
comment on column afterwrite.migration.plan is 'The plan as people reviewed it (TOML), as last run.';
comment on column afterwrite.migration.operator is
    'Who the person was, as the session said in the setting afterwrite.operator; actor is the role that logged in.';
comment on constraint migration_outcome on afterwrite.migration is
    'A migration ends by being rolled back; one that goes well stays active, so that it can be.';
comment on constraint migration_finished_with_outcome on afterwrite.migration is
    'What has ended says how, and what goes on does not.';

create unique index migration_one_active on afterwrite.migration ((true)) where finished_at is null;
comment on index afterwrite.migration_one_active is 'At most one migration of a database is active.';

create table afterwrite.ledger (
    seq         bigint generated always as identity primary key,
    migration   bigint references afterwrite.migration (id),
    phase       int,
    subject     text not null,
    action      text not null,
    sql         text,
    before      jsonb,
    after       jsonb,
    actor       text not null default session_user,
    operator    text default nullif(pg_catalog.current_setting('afterwrite.operator', true), ''),
    application text not null default coalesce(pg_catalog.current_setting('application_name', true), ''),
    at          timestamptz not null default pg_catalog.clock_timestamp(),
    xid         xid8 not null default pg_catalog.pg_current_xact_id(),
    constraint ledger_action check (action in (
        'migration.start', 'migration.plan', 'migration.finish',
        'phase.soaked', 'phase.halted',
        'trigger.backup', 'trigger.silence', 'trigger.remove', 'trigger.restore', 'trigger.left',
        'function.remove', 'function.restore',
        'legacy.backfill', 'backup.rehearsed', 'drift.seen', 'drift.over',
        'replica_identity.set', 'replica_identity.restore')),
    constraint ledger_trigger_in_migration check (
        action not in ('trigger.backup', 'trigger.silence', 'trigger.remove', 'trigger.restore', 'trigger.left')
        or (migration is not null and phase is not null)),
    constraint ledger_deed_has_sql check (
        action not in ('trigger.silence', 'trigger.remove', 'trigger.restore', 'function.remove', 'function.restore')
        or sql is not null),
    constraint ledger_backup_has_before check (
        action not in ('trigger.backup', 'trigger.remove', 'function.remove') or before is not null)
);
comment on table afterwrite.ledger is
    'Everything a migration did, in order, written in the same transaction as the deed. Rows are only ever added.';
comment on column afterwrite.ledger.subject is
    'What was done to: a trigger (schema.table.trigger), a table, or the plan.';
comment on column afterwrite.ledger.sql is 'The statement that did it, as it ran.';
comment on column afterwrite.ledger.before is 'The state found; of a trigger.backup all that is needed to make it again.';
comment on column afterwrite.ledger.xid is 'The transaction of the deed: what shares it happened together.';
comment on constraint ledger_action on afterwrite.ledger is 'Only deeds that are known can be told.';
comment on constraint ledger_trigger_in_migration on afterwrite.ledger is
    'A trigger is touched by a phase of a migration, never outside one.';
comment on constraint ledger_deed_has_sql on afterwrite.ledger is 'What changed a trigger is kept word for word.';
comment on constraint ledger_backup_has_before on afterwrite.ledger is 'A backup without content is none.';

create index ledger_by_subject on afterwrite.ledger (subject, seq desc);

-- Append-only without a trigger: a rule rewrites every UPDATE and DELETE into a call that raises for each row that it
-- would have touched, for the owner and for superusers too; TRUNCATE, which rules do not see, is revoked from everybody
-- (a superuser can still truncate, as he can drop the table).
create function afterwrite.ledger_is_append_only() returns void
    language plpgsql
    set search_path = pg_catalog
as $$
begin
    raise exception 'the ledger is append-only: its rows are never changed or removed'
        using errcode = 'restrict_violation',
              hint = 'write a new row that tells what happened since';
end
$$;
create rule ledger_is_never_updated as on update to afterwrite.ledger
    do instead select afterwrite.ledger_is_append_only();
create rule ledger_is_never_deleted_from as on delete to afterwrite.ledger
    do instead select afterwrite.ledger_is_append_only();
comment on rule ledger_is_never_updated on afterwrite.ledger is 'What was written in the ledger stays as it was written.';
comment on rule ledger_is_never_deleted_from on afterwrite.ledger is 'What was written in the ledger stays.';
revoke update, delete, truncate on afterwrite.ledger from public, current_user;

-- Every role may emit a message that looks like a mark; only who may silence a trigger can write the ledger. xid is the
-- transaction's as the WAL has it, without its epoch: of the two that it may mean, the one that is no more than half the
-- counter ahead. A commit is in the WAL, and may be read from there, before others see what it did.
create function afterwrite.judge_mark(mark_subject text, mark_action text, mark_xid bigint) returns text
    language sql stable
    set search_path = pg_catalog
as $$
    with ahead as (
        select pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 2147483648 as xid
    ), deed as (
        select greatest(xid - mod(xid - mark_xid, 4294967296), 0)::text::xid8 as xid from ahead
    )
    select case
               when exists (select from afterwrite.ledger l
                             where l.subject = mark_subject and l.action = mark_action and l.xid = d.xid)
                   then 'told'
               when pg_visible_in_snapshot(d.xid, pg_current_snapshot()) then 'forged'
               else 'open'
           end
      from deed d
$$;
comment on function afterwrite.judge_mark(text, text, bigint) is
    'Whether the ledger tells of the deed that a mark in the WAL speaks of (told), does not (forged), or its transaction cannot be seen yet (open).';

-- A trigger with its clones on partitions, root first: cloned row triggers have their own enabled state.
create function afterwrite.trigger_tree(of_table regclass, of_trigger text)
    returns table (trigger_oid oid, table_oid oid, relation text, enabled text, depth int)
    language sql stable
    set search_path = pg_catalog
as $$
    with recursive tree as (
        select t.oid, t.tgrelid, t.tgenabled, 0 as depth
          from pg_trigger t
         where t.tgrelid = of_table and t.tgname = of_trigger and (not t.tgisinternal or t.tgparentid <> 0)
        union all
        select c.oid, c.tgrelid, c.tgenabled, tree.depth + 1
          from pg_trigger c
          join tree on c.tgparentid = tree.oid
    )
    select oid, tgrelid, tgrelid::regclass::text, tgenabled::text, depth
      from tree order by depth, tgrelid::regclass::text collate "C"
$$;
comment on function afterwrite.trigger_tree(regclass, text) is
    'A trigger and its clones on partitions, each with its own enabled state.';

-- The enabled state of a trigger and of its clones: {"public.orders": "O", "public.orders_2025": "A"}.
create function afterwrite.trigger_states(of_table regclass, of_trigger text) returns jsonb
    language sql stable
    set search_path = pg_catalog
as $$
    select coalesce(jsonb_object_agg(relation, enabled), '{}') from afterwrite.trigger_tree(of_table, of_trigger)
$$;
comment on function afterwrite.trigger_states(regclass, text) is
    'The enabled state (pg_trigger.tgenabled) of a trigger and of its clones, by table.';

-- All that is needed to make a function again as it is now; null when there is none.
create function afterwrite.function_backup(of_function oid) returns jsonb
    language sql stable
    set search_path = pg_catalog
as $$
    select jsonb_build_object(
               'signature', f.oid::regprocedure::text,
               'oid', f.oid::bigint,
               'definition', case when l.lanname = 'internal' then '' else pg_get_functiondef(f.oid) end,
               'owner', pg_get_userbyid(f.proowner),
               'language', l.lanname,
               'acl', to_jsonb(f.proacl::text[]),
               'grants', (select jsonb_agg(
                                    jsonb_build_object(
                                        'grantee', case a.grantee when 0 then null else pg_get_userbyid(a.grantee) end,
                                        'grantable', a.is_grantable)
                                    order by a.place)
                            from aclexplode(f.proacl) with ordinality
                                 as a (grantor, grantee, privilege_type, is_grantable, place)),
               'config', to_jsonb(f.proconfig),
               'comment', obj_description(f.oid, 'pg_proc'))
      from pg_proc f
      join pg_language l on l.oid = f.prolang
     where f.oid = of_function
$$;
comment on function afterwrite.function_backup(oid) is
    'Everything that makes a function what it is: definition with its SET clauses, owner, grants in their order, comment.';

-- All that is needed to make a trigger again as it is now, and to tell whether it still is; null when there is none.
-- search_path is pg_catalog alone, so that every name in it is qualified.
create function afterwrite.trigger_backup(of_table regclass, of_trigger text) returns jsonb
    language sql stable
    set search_path = pg_catalog
as $$
    select jsonb_build_object(
               'schema', n.nspname,
               'table', c.relname,
               'trigger', t.tgname,
               'oid', t.oid::bigint,
               'table_oid', c.oid::bigint,
               'relation', c.oid::regclass::text,
               'table_kind', c.relkind,
               'table_owner', pg_get_userbyid(c.relowner),
               'create', pg_get_triggerdef(t.oid),
               'enabled', t.tgenabled,
               'comment', obj_description(t.oid, 'pg_trigger'),
               'constraint', t.tgconstraint <> 0,
               'deferrable', t.tgdeferrable,
               'initially_deferred', t.tginitdeferred,
               'parent', (select p.tgrelid::regclass::text from pg_trigger p where p.oid = t.tgparentid),
               'clones', coalesce(
                   (select jsonb_agg(
                               jsonb_build_object(
                                   'relation', k.relation,
                                   'oid', k.trigger_oid::bigint,
                                   'table_oid', k.table_oid::bigint,
                                   'enabled', k.enabled,
                                   'comment', obj_description(k.trigger_oid, 'pg_trigger'))
                               order by k.depth, k.relation collate "C")
                      from afterwrite.trigger_tree(of_table, of_trigger) k
                     where k.depth > 0),
                   '[]'),
               'function', afterwrite.function_backup(t.tgfoid))
      from pg_trigger t
      join pg_class c on c.oid = t.tgrelid
      join pg_namespace n on n.oid = c.relnamespace
     where t.tgrelid = of_table and t.tgname = of_trigger
$$;
comment on function afterwrite.trigger_backup(regclass, text) is
    'Everything that makes a trigger what it is: definition, states, comments, function with owner, grants and settings.';

-- The fingerprint that a plan has of a trigger: one half is its own, the other its function's.
create function afterwrite.trigger_fingerprint(of_table regclass, of_trigger text) returns text
    language sql stable
    set search_path = pg_catalog
as $$
    select 'sha256:' || left(encode(sha256(convert_to(pg_get_triggerdef(t.oid), 'UTF8')), 'hex'), 16)
                     || left(encode(sha256(convert_to(case l.lanname when 'internal' then '' else pg_get_functiondef(f.oid) end,
                                                      'UTF8')
                                           || '\x00'::bytea || convert_to(pg_get_userbyid(f.proowner), 'UTF8')), 'hex'), 16)
      from pg_trigger t
      join pg_proc f on f.oid = t.tgfoid
      join pg_language l on l.oid = f.prolang
     where t.tgrelid = of_table and t.tgname = of_trigger
$$;
comment on function afterwrite.trigger_fingerprint(regclass, text) is
    'A short text that changes when the definition of a trigger or of its function does, as the plan has it.';

-- A script that is run by hand days after it was written stops here when the trigger is another one by now.
create function afterwrite.require_trigger(of_table text, of_trigger text, fingerprint text) returns void
    language plpgsql
    set search_path = pg_catalog
as $$
begin
    if afterwrite.trigger_fingerprint(to_regclass(of_table), of_trigger) is distinct from fingerprint then
        raise exception 'trigger % on % or its function was changed after the plan was written; nothing was done to this table',
            of_trigger, of_table
            using errcode = 'AW003', hint = 'run `afterwrite plan --check`, which says what was changed';
    end if;
end
$$;
comment on function afterwrite.require_trigger(text, text, text) is
    'Raises unless a trigger and its function are what a plan says.';

create table afterwrite.pulse (
    at              timestamptz not null,
    commits         bigint not null,
    rollbacks       bigint not null,
    deadlocks       bigint not null,
    failed_sessions bigint not null,
    active_ms       double precision not null,
    statements      bigint,
    statement_ms    double precision,
    cpu_seconds     double precision,
    constraint pulse_pkey primary key (at)
);
comment on table afterwrite.pulse is
    'The server''s counters as they were now and then: what the gates compare the time since a silencing with.';
comment on column afterwrite.pulse.statements is
    'Writing statements by pg_stat_statements, with their time; null where it is not installed, or does not show all.';
comment on column afterwrite.pulse.cpu_seconds is 'CPU of the whole cluster, where whoever noted it is on its machine.';

create function afterwrite.user_tables() returns jsonb
    language sql stable
    set search_path = pg_catalog
as $$
    select coalesce(jsonb_agg(c.oid::bigint order by c.oid), '[]')
      from pg_class c
      join pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence <> 't'
       and n.nspname <> 'information_schema' and n.nspname !~ '^pg_' and n.nspname !~ '^afterwrite(_|$)'
$$;
comment on function afterwrite.user_tables() is 'The oids of the user''s tables: what a migration found when it began.';
