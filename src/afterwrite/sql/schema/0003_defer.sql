-- Triggers that go on after commit: their bodies as ordinary functions, how far they have run, and what failed.
-- All of it lives in the source database, so that a body's effects and its progress commit together.

create schema afterwrite_clock;
comment on schema afterwrite_clock is
    'Stands ahead of pg_catalog on the search path of transplanted bodies: now() there is the time of the original commit.';
grant usage on schema afterwrite_clock to public;

create function afterwrite_clock.now() returns timestamptz language sql stable parallel safe as $$
    select coalesce(
        nullif(pg_catalog.current_setting('afterwrite.committed_at', true), '')::pg_catalog.timestamptz, pg_catalog.now())
$$;
comment on function afterwrite_clock.now() is 'When the original transaction committed; the real clock where none is being replayed.';

create function afterwrite_clock.transaction_timestamp() returns timestamptz language sql stable parallel safe as $$
    select afterwrite_clock.now()
$$;
comment on function afterwrite_clock.transaction_timestamp() is 'As now().';

create function afterwrite_clock.statement_timestamp() returns timestamptz language sql stable parallel safe as $$
    select afterwrite_clock.now()
$$;
comment on function afterwrite_clock.statement_timestamp() is 'As now(): where a statement began is not in the WAL.';

create function afterwrite_clock.clock_timestamp() returns timestamptz language sql volatile parallel safe as $$
    select afterwrite_clock.now() + (pg_catalog.clock_timestamp() - pg_catalog.transaction_timestamp())
$$;
comment on function afterwrite_clock.clock_timestamp() is
    'The original commit time, going on from there as fast as the real clock: durations stay true.';

create schema afterwrite_deferred;
comment on schema afterwrite_deferred is
    'Transplanted trigger bodies, each with the function that runs it for one change. Made and dropped by migrate.';
grant usage on schema afterwrite_deferred to public;

create table afterwrite.deferral (
    id          bigint generated always as identity,
    source      text        not null,
    identity    text        not null,
    trigger_oid oid         not null,
    table_oid   oid         not null,
    relations   text[]      not null,
    body        text        not null,
    run         text        not null,
    definition  jsonb       not null,
    path        text        not null,
    mode        text        not null,
    on_error    text        not null default 'park',
    skip_lsn    pg_lsn,
    state       text        not null default 'prepared',
    since_lsn   pg_lsn,
    until_lsn   pg_lsn,
    prepared_at timestamptz not null default pg_catalog.clock_timestamp(),
    constraint deferral_pkey primary key (id),
    constraint deferral_has_a_table check (cardinality(relations) > 0),
    constraint deferral_mode check (mode in ('defer', 'retire')),
    constraint deferral_on_error check (on_error in ('park', 'stop')),
    constraint deferral_state check (state in ('prepared', 'live', 'ended', 'dropped')),
    constraint deferral_live_since check (state <> 'live' or (since_lsn is not null and until_lsn is null)),
    constraint deferral_ended_until check (state <> 'ended' or (since_lsn is not null and until_lsn is not null)),
    constraint deferral_lsns_in_order check (since_lsn < until_lsn)
);
comment on table afterwrite.deferral is
    'A trigger whose body runs after commit, for the changes committed strictly between its silencing and its restoring.';
comment on column afterwrite.deferral.identity is 'schema.table.trigger, as people and marks name it.';
comment on column afterwrite.deferral.relations is
    'The names (quoted schema.table, as activity.relation has them) that the table had since; the functions are made for the last.';
comment on column afterwrite.deferral.body is 'The transplanted body, a function in afterwrite_deferred.';
comment on column afterwrite.deferral.run is 'The function in afterwrite_deferred that runs the body for one change.';
comment on column afterwrite.deferral.definition is 'The trigger and its function as the catalog had them.';
comment on column afterwrite.deferral.path is 'The search path under which the body ran as a trigger, where the function sets none itself.';
comment on column afterwrite.deferral.mode is
    'defer: its effects must go on. retire: the store replaces its log, and the legacy log is kept filled all the same.';
comment on column afterwrite.deferral.on_error is
    'What a call that fails does to the stream: park it as a dead letter and go on, or stop until somebody mends or skips it.';
comment on column afterwrite.deferral.skip_lsn is
    'The transaction whose failing calls may be parked although on_error says stop (set by `afterwrite defer skip`).';
comment on column afterwrite.deferral.state is
    'prepared: functions are there, nothing runs (set by migrate). live: from the mark of the silencing on (set by the replayer). ended: from the mark of the restoring on (set by the replayer). dropped: functions are gone (set by migrate).';
comment on column afterwrite.deferral.since_lsn is 'Commit LSN of the silencing: later changes are the body''s.';
comment on column afterwrite.deferral.until_lsn is 'Commit LSN of the restoring: later changes are the trigger''s again.';
comment on constraint deferral_live_since on afterwrite.deferral is 'What runs has a beginning and no end yet.';
comment on constraint deferral_ended_until on afterwrite.deferral is 'What ended has both borders.';
comment on constraint deferral_lsns_in_order on afterwrite.deferral is 'A trigger is silenced before it is restored.';
create unique index deferral_one_active on afterwrite.deferral (source, identity) where state in ('prepared', 'live');
comment on index afterwrite.deferral_one_active is 'A trigger''s body is deferred once at a time: no change runs it twice.';

create table afterwrite.deferral_progress (
    source       text        not null,
    position     bigint      not null,
    commit_lsn   pg_lsn      not null,
    transactions bigint      not null default 0,
    calls        bigint      not null default 0,
    parked       bigint      not null default 0,
    updated_at   timestamptz not null default pg_catalog.clock_timestamp(),
    halted_lsn   pg_lsn,
    trouble      text,
    constraint deferral_progress_pkey primary key (source),
    constraint deferral_progress_counts check (position >= 0 and transactions >= 0 and calls >= 0 and parked >= 0),
    constraint deferral_progress_halted check ((halted_lsn is null) = (trouble is null))
) with (fillfactor = 40);
comment on table afterwrite.deferral_progress is
    'How far deferred bodies have run. Its row is locked and compared first and moved last in the transaction of the effects: that is what makes them happen exactly once.';
comment on column afterwrite.deferral_progress.position is 'The last feed batch that has run wholly.';
comment on column afterwrite.deferral_progress.commit_lsn is
    'Every source transaction that committed at or before here has run; it may lie inside the batch after position.';
comment on column afterwrite.deferral_progress.calls is 'Bodies that ran, after WHEN.';
comment on column afterwrite.deferral_progress.halted_lsn is
    'The transaction at which the stream stands, because a body whose on_error is stop fails there; trouble says how.';

create table afterwrite.dead_letter (
    id           bigint generated always as identity,
    source       text        not null,
    deferral_id  bigint      not null,
    identity     text        not null,
    run          text        not null,
    activity_id  uuid        not null,
    commit_lsn   pg_lsn      not null,
    ordinal      integer     not null,
    committed_at timestamptz not null,
    operation    text        not null,
    before       jsonb,
    after        jsonb,
    context      text        not null,
    settings     jsonb       not null,
    role         text,
    sqlstate     text,
    error        text        not null,
    detail       text,
    attempts     integer     not null,
    parked_at    timestamptz not null default pg_catalog.clock_timestamp(),
    resolved_at  timestamptz,
    resolution   text,
    constraint dead_letter_pkey primary key (id),
    constraint dead_letter_parked_once unique (source, deferral_id, commit_lsn, ordinal),
    constraint dead_letter_deferral foreign key (deferral_id) references afterwrite.deferral (id),
    constraint dead_letter_operation check (operation in ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')),
    constraint dead_letter_attempts check (attempts >= 0),
    constraint dead_letter_resolution check (resolution in ('retried', 'skipped')),
    constraint dead_letter_resolved check ((resolved_at is null) = (resolution is null))
);
comment on table afterwrite.dead_letter is
    'A call of a deferred body that failed, with all it takes to run it again: `afterwrite defer retry`.';
comment on column afterwrite.dead_letter.before is 'The old row; for a statement trigger the array of old rows.';
comment on column afterwrite.dead_letter.role is 'The role that the original transaction stamped, where it did.';
comment on column afterwrite.dead_letter.attempts is 'How often it was tried; 0 when it was refused without a try.';
comment on constraint dead_letter_parked_once on afterwrite.dead_letter is 'A failed call is kept once, as it is run once.';
comment on constraint dead_letter_resolved on afterwrite.dead_letter is 'What is resolved says how.';
create index dead_letter_open on afterwrite.dead_letter (source, commit_lsn, ordinal) where resolved_at is null;

create function afterwrite.table_shape(of_table regclass) returns text language sql stable set search_path = pg_catalog as $$
    select md5(string_agg(
               format('%s %s %s %s', attname, atttypid::regtype, atttypmod, attgenerated), ',' order by attnum))
      from pg_attribute
     where attrelid = of_table and attnum > 0 and not attisdropped
$$;
comment on function afterwrite.table_shape(regclass) is
    'A digest of a table''s columns, by which a transplant knows that they are still those it was made for.';

create function afterwrite.miss_columns(of_table regclass, known_shape text, lost jsonb) returns void
language plpgsql set search_path = pg_catalog as $$
begin
    if afterwrite.table_shape(of_table) is distinct from known_shape then
        raise exception 'the columns of % changed', of_table using errcode = 'AW002';
    end if;
    raise exception 'the change has values of % for which % has no column any more',
        (select string_agg(quote_ident(k), ', ' order by k) from jsonb_object_keys(lost) k), of_table
        using errcode = 'AW003',
              hint = 'give the columns their old names back for the moment of `afterwrite defer retry`';
end
$$;
comment on function afterwrite.miss_columns(regclass, text, jsonb) is
    'Raises for a change with columns that its table has not: first that the transplant is older than they are, then that they were renamed or dropped since.';

create function afterwrite.logs_old_rows(of_table regclass) returns boolean
language sql stable set search_path = pg_catalog as $$
    select coalesce(bool_and(c.relreplident = 'f'), false)
      from (select of_table::oid as oid union select p.relid::oid from pg_partition_tree(of_table) p) part
      join pg_class c on c.oid = part.oid and c.relkind = 'r'
$$;
comment on function afterwrite.logs_old_rows(regclass) is
    'Whether a table, or each partition of it, has REPLICA IDENTITY FULL now.';

create function afterwrite.miss_old_row(of_table regclass) returns void
language plpgsql set search_path = pg_catalog as $$
begin
    raise exception 'the WAL does not hold the whole old row of %', of_table
        using errcode = 'AW003', hint = format('ALTER TABLE %s REPLICA IDENTITY FULL, then run it by hand', of_table);
end
$$;
comment on function afterwrite.miss_old_row(regclass) is 'Raises for a change of whose old row only the key is known.';

create function afterwrite.is_transient(sqlstate text) returns boolean language sql immutable parallel safe as $$
    -- Lost a race, or did not get a lock (40, 55P03, 55006); was cancelled by a person or a timeout of its own (57014); a
    -- server that it asked was away (08, HV00N); the catalog changed under it (XX000 says "tuple concurrently updated").
    select sqlstate ~ '^(40|08)' or sqlstate in ('55P03', '55006', '57014', 'HV00N', 'XX000')
$$;
comment on function afterwrite.is_transient(text) is
    'Whether a body that failed like this may succeed when it is tried again, with nothing mended by people.';

create function afterwrite.enter_original(settings jsonb, committed_at timestamptz, stamped_role text) returns void
language plpgsql set search_path = pg_catalog set datestyle = 'ISO' set timezone = 'UTC' as $$
begin
    perform set_config('afterwrite.committed_at', committed_at::text, true);
    perform set_config('afterwrite.role', coalesce(stamped_role, ''), true);
    perform set_config(s.key, s.value, true) from jsonb_each_text(settings) s;
end
$$;
comment on function afterwrite.enter_original(jsonb, timestamptz, text) is
    'For the rest of this transaction, settings and clock are those of an original transaction, and so is the role of bodies.';

create function afterwrite.leaf_of(root regclass, row_of_it jsonb) returns regclass
language plpgsql stable set search_path = pg_catalog as $$
declare
    leaf regclass;
    fits boolean;
begin
    for leaf in select relid from pg_partition_tree(root) where isleaf loop
        execute format('select %s from jsonb_populate_record(null::%s, $1)',
                       coalesce(pg_get_partition_constraintdef(leaf), 'true'), root)
           into fits using row_of_it;
        if fits then
            return leaf;
        end if;
    end loop;
    return root;
end
$$;
comment on function afterwrite.leaf_of(regclass, jsonb) is
    'The partition that a row of a partitioned table belongs in today (the stream tells the root only); the root where none does.';

-- job: {"source", "after", "position", "reached", "commit_lsn", "committed_at", "context", "settings", "role", "opens",
--       "closes", "attempts", "last", "groups": [{"operation", "deferrals", "runs", "rows": [[before, after]], "ids",
--       "ordinals", "refused"}]}, as defer/calls.py says it (Job).
create function afterwrite.run_calls(job jsonb, guarded boolean, out ran bigint, out parked bigint)
language plpgsql set search_path = pg_catalog as $$
declare
    part    jsonb;
    befores jsonb[];
    afters  jsonb[];
    calls   text;
    count   bigint;
    letter  afterwrite.dead_letter;
begin
    ran := 0;
    parked := 0;
    if (job ->> 'opens')::boolean then
        perform afterwrite.enter_original(job -> 'settings', (job ->> 'committed_at')::timestamptz, job ->> 'role');
    end if;

    letter.source := job ->> 'source';
    letter.commit_lsn := (job ->> 'commit_lsn')::pg_lsn;
    letter.committed_at := (job ->> 'committed_at')::timestamptz;
    letter.context := job ->> 'context';
    letter.settings := job -> 'settings';
    letter.role := job ->> 'role';
    for part in select value from jsonb_array_elements(job -> 'groups') loop
        letter.operation := part ->> 'operation';
        if not guarded then
            if part ->> 'refused' is not null then
                raise exception '%', part ->> 'refused' using errcode = 'AW003';
            end if;
            -- One statement runs the whole group, row by row, and within a row one body after the other.
            select array_agg(nullif(r.value -> 0, 'null'::jsonb) order by r.n),
                   array_agg(nullif(r.value -> 1, 'null'::jsonb) order by r.n)
              into befores, afters
              from jsonb_array_elements(part -> 'rows') with ordinality as r (value, n);
            select string_agg(format('afterwrite_deferred.%I($1, r.before, r.after)::integer', f.run), ' + ' order by f.n)
              into calls
              from jsonb_array_elements_text(part -> 'runs') with ordinality as f (run, n);
            execute format('select sum(%s) from unnest($2, $3) as r (before, after)', calls)
               into count
              using letter.operation, befores, afters;
            ran := ran + count;
            continue;
        end if;

        for i in 0 .. jsonb_array_length(part -> 'rows') - 1 loop
            letter.activity_id := (part -> 'ids' ->> i)::uuid;
            letter.ordinal := (part -> 'ordinals' ->> i)::integer;
            letter.before := nullif(part -> 'rows' -> i -> 0, 'null'::jsonb);
            letter.after := nullif(part -> 'rows' -> i -> 1, 'null'::jsonb);
            for j in 0 .. jsonb_array_length(part -> 'runs') - 1 loop
                letter.run := part -> 'runs' ->> j;
                letter.deferral_id := (part -> 'deferrals' ->> j)::bigint;
                letter.error := part ->> 'refused';
                letter.sqlstate := case when letter.error is not null then 'AW003' end;
                letter.detail := null;
                letter.attempts := 0;
                if letter.error is null then
                    begin
                        execute format('select afterwrite_deferred.%I($1, $2, $3)::integer', letter.run)
                           into count
                          using letter.operation, letter.before, letter.after;
                        -- A deferred constraint must speak while it is known whose fault it is.
                        set constraints all immediate;
                        set constraints all deferred;
                        ran := ran + count;
                        continue;
                    exception
                        when query_canceled or assert_failure or others then
                            get stacked diagnostics
                                letter.sqlstate = returned_sqlstate,
                                letter.error = message_text,
                                letter.detail = pg_exception_context;
                            -- A full disk is no fault of the body's, and a table that changed is mended by us.
                            if letter.sqlstate = 'AW002' or left(letter.sqlstate, 2) in ('53', '58')
                               or (afterwrite.is_transient(letter.sqlstate) and not (job ->> 'last')::boolean) then
                                raise;
                            end if;
                            letter.attempts := (job ->> 'attempts')::integer;
                    end;
                end if;
                if exists (
                    select from afterwrite.deferral d
                     where d.id = letter.deferral_id and d.on_error = 'stop'
                       and d.skip_lsn is distinct from letter.commit_lsn
                ) then
                    raise exception '%', letter.error using errcode = letter.sqlstate, detail = coalesce(letter.detail, '');
                end if;
                insert into afterwrite.dead_letter (
                    source, deferral_id, identity, run, activity_id, commit_lsn, ordinal, committed_at, operation, before,
                    after, context, settings, role, sqlstate, error, detail, attempts
                )
                select letter.source, letter.deferral_id, d.identity, letter.run, letter.activity_id, letter.commit_lsn,
                       letter.ordinal, letter.committed_at, letter.operation, letter.before, letter.after, letter.context,
                       letter.settings, letter.role, letter.sqlstate, letter.error, letter.detail, letter.attempts
                  from afterwrite.deferral d
                 where d.id = letter.deferral_id;
                parked := parked + 1;
            end loop;
        end loop;
    end loop;

    if ran > 0 then
        -- Last, so that it wins over a stamp of the body's own.
        perform pg_logical_emit_message(true, 'afterwrite.context', letter.context);
    end if;
    if (job ->> 'closes')::boolean then
        set constraints all immediate;
    end if;
end
$$;
comment on function afterwrite.run_calls(jsonb, boolean) is
    'Runs the bodies that one source transaction calls, in the caller''s transaction. guarded: each call by itself, and what fails becomes a dead letter, or stops the stream where its deferral says so.';

create function afterwrite.run_deferred(job jsonb, guarded boolean, out ran bigint, out parked bigint)
language plpgsql set search_path = pg_catalog as $$
declare
    reached pg_lsn;
begin
    if (job ->> 'opens')::boolean then
        select commit_lsn into reached from afterwrite.deferral_progress where source = job ->> 'source' for update;
        if reached is distinct from (job ->> 'after')::pg_lsn then
            raise exception 'deferred bodies of source % have run to %, not to %', job ->> 'source', reached, job ->> 'after'
                using errcode = 'AW001', hint = 'another replayer was at work: read the progress again';
        end if;
    end if;
    select c.ran, c.parked into ran, parked from afterwrite.run_calls(job, guarded) c;
    update afterwrite.deferral_progress p
       set position = case when (job ->> 'closes')::boolean then (job ->> 'position')::bigint else p.position end,
           commit_lsn = case when (job ->> 'closes')::boolean then (job ->> 'reached')::pg_lsn else p.commit_lsn end,
           transactions = p.transactions + (job ->> 'closes')::boolean::integer,
           calls = p.calls + ran,
           parked = p.parked + run_deferred.parked,
           halted_lsn = null,
           trouble = null,
           updated_at = pg_catalog.clock_timestamp()
     where p.source = job ->> 'source';
end
$$;
comment on function afterwrite.run_deferred(jsonb, boolean) is
    'Runs the bodies that one source transaction calls, and moves the progress with them.';

create procedure afterwrite.forget_session() language plpgsql as $$
declare
    who text := pg_catalog.current_setting('afterwrite.operator', true);
begin
    reset all;
    if who <> '' then
        perform pg_catalog.set_config('afterwrite.operator', who, false);
    end if;
end
$$;
comment on procedure afterwrite.forget_session() is
    'Forgets what bodies set for their session: the next transaction that is replayed had a session of its own.';

create procedure afterwrite.run_deferred_each(jobs jsonb) language plpgsql as $$
begin
    for i in 0 .. pg_catalog.jsonb_array_length(jobs) - 1 loop
        call afterwrite.forget_session();
        perform afterwrite.run_deferred(jobs -> i, false);
        commit;
    end loop;
end
$$;
comment on procedure afterwrite.run_deferred_each(jsonb) is
    'Runs several source transactions in one round trip, each in a transaction of its own: their settings, clock and context stay apart.';

create function afterwrite.retry_dead_letter(letter_id bigint) returns boolean
language plpgsql set search_path = pg_catalog as $$
declare
    letter afterwrite.dead_letter;
begin
    select * into letter from afterwrite.dead_letter where id = letter_id and resolved_at is null for update;
    if not found then
        return false;
    end if;
    perform afterwrite.enter_original(letter.settings, letter.committed_at, letter.role);
    execute format('select afterwrite_deferred.%I($1, $2, $3)', letter.run)
      using letter.operation, letter.before, letter.after;
    set constraints all immediate;
    perform pg_logical_emit_message(true, 'afterwrite.context', letter.context);
    update afterwrite.dead_letter
       set resolved_at = pg_catalog.clock_timestamp(), resolution = 'retried', attempts = letter.attempts + 1
     where id = letter.id;
    return true;
end
$$;
comment on function afterwrite.retry_dead_letter(bigint) is
    'Runs a parked call again and marks it resolved, in the caller''s transaction; false when it is resolved already.';

create table afterwrite.backfill (
    id          bigint generated always as identity,
    source      text        not null,
    identity    text        not null,
    after_lsn   pg_lsn      not null,
    until_lsn   pg_lsn      not null,
    reached_lsn pg_lsn      not null,
    deferral_id bigint      not null,
    begun_at    timestamptz not null default pg_catalog.clock_timestamp(),
    ended_at    timestamptz,
    constraint backfill_pkey primary key (id),
    constraint backfill_window unique (source, identity, after_lsn),
    constraint backfill_deferral foreign key (deferral_id) references afterwrite.deferral (id),
    constraint backfill_lsns_in_order check (after_lsn <= reached_lsn and reached_lsn <= until_lsn),
    constraint backfill_ended check (ended_at is null or reached_lsn = until_lsn)
);
comment on table afterwrite.backfill is
    'A time when a trigger was off and its log was not kept, which its body fills afterwards: what committed between after_lsn and until_lsn.';
comment on column afterwrite.backfill.reached_lsn is
    'What committed at or before here is filled. Locked and compared first and moved last in the transaction of the rows: nothing is filled twice.';

create table afterwrite.backfilled (
    source     text        not null,
    commit_lsn pg_lsn      not null,
    xid        bigint      not null,
    identities text[]      not null,
    calls      bigint      not null,
    rows       bigint      not null,
    filled_at  timestamptz not null default pg_catalog.clock_timestamp(),
    constraint backfilled_pkey primary key (source, commit_lsn, xid)
);
comment on table afterwrite.backfilled is
    'The mark of filled rows: the transaction xid wrote what the triggers would have written for the source transaction that committed at commit_lsn.';
comment on column afterwrite.backfilled.rows is 'Rows that it inserted, afterwrite''s own aside.';

create function afterwrite.count_inserted() returns bigint language sql volatile set search_path = pg_catalog as $$
    select coalesce(sum(pg_stat_get_xact_tuples_inserted(c.oid)), 0)::bigint
      from pg_class c
     where c.relkind = 'r'
       and c.relnamespace not in (select n.oid from pg_namespace n where n.nspname ~ '^(pg_|afterwrite(_|$))')
$$;
comment on function afterwrite.count_inserted() is
    'How many rows this session has inserted into tables that are not ours, since it last told the statistics.';

create function afterwrite.run_backfill(job jsonb, guarded boolean, fillings bigint[], out ran bigint, out parked bigint)
language plpgsql set search_path = pg_catalog as $$
declare
    behind   bigint;
    inserted bigint;
    names    text[];
begin
    if (job ->> 'opens')::boolean then
        select count(*) filter (where b.reached_lsn is distinct from (job ->> 'after')::pg_lsn)
          into behind
          from (select reached_lsn from afterwrite.backfill where id = any (fillings) order by id for update) b;
        if behind > 0 then
            raise exception 'the window is not filled up to %', job ->> 'after'
                using errcode = 'AW001', hint = 'somebody else fills it: read how far it is again';
        end if;
        perform set_config('afterwrite.filled_rows', '0', true);
        perform set_config('afterwrite.filled_calls', '0', true);
    end if;
    inserted := afterwrite.count_inserted();
    select c.ran, c.parked into ran, parked from afterwrite.run_calls(job, guarded) c;
    inserted := current_setting('afterwrite.filled_rows')::bigint + afterwrite.count_inserted() - inserted;
    perform set_config('afterwrite.filled_rows', inserted::text, true);
    perform set_config('afterwrite.filled_calls', (current_setting('afterwrite.filled_calls')::bigint + ran)::text, true);
    if not (job ->> 'closes')::boolean then
        return;
    end if;
    update afterwrite.backfill set reached_lsn = (job ->> 'reached')::pg_lsn where id = any (fillings);
    if current_setting('afterwrite.filled_calls')::bigint = 0 then
        return;
    end if;
    select array_agg(identity order by identity) into names from afterwrite.backfill where id = any (fillings);
    insert into afterwrite.backfilled (source, commit_lsn, xid, identities, calls, rows)
    values (job ->> 'source', (job ->> 'commit_lsn')::pg_lsn, pg_current_xact_id()::text::bigint, names,
            current_setting('afterwrite.filled_calls')::bigint, inserted);
    perform pg_logical_emit_message(true, 'afterwrite.event', jsonb_build_object(
        'category', 'migration', 'action', 'window.filled', 'entity_type', 'transaction',
        'entity_id', job ->> 'commit_lsn',
        'summary', format('filled what %s would have written at %s', array_to_string(names, ', '), job ->> 'committed_at'),
        'metadata', jsonb_build_object('source', job ->> 'source', 'commit_lsn', job ->> 'commit_lsn', 'identities', names)
    )::text);
end
$$;
comment on function afterwrite.run_backfill(jsonb, boolean, bigint[]) is
    'Runs the bodies that one transaction of a silent time calls, moves the fillings with them, and marks what was filled.';

create procedure afterwrite.run_backfill_each(jobs jsonb, fillings bigint[]) language plpgsql as $$
begin
    for i in 0 .. pg_catalog.jsonb_array_length(jobs) - 1 loop
        call afterwrite.forget_session();
        perform afterwrite.run_backfill(jobs -> i, false, fillings);
        commit;
    end loop;
end
$$;
comment on procedure afterwrite.run_backfill_each(jsonb, bigint[]) is
    'Fills for several source transactions in one round trip, each in a transaction of its own.';

create table afterwrite.rehearsal (
    trigger   text        not null,
    operation text        not null,
    outcome   text        not null,
    count     bigint      not null,
    last_lsn  pg_lsn      not null,
    last_at   timestamptz not null,
    example   jsonb,
    constraint rehearsal_pkey primary key (trigger, operation, outcome),
    constraint rehearsal_outcome check (outcome in (
        'matched', 'idle', 'value', 'missing', 'extra', 'error', 'unseen', 'mixed', 'unkeyed', 'unable')),
    constraint rehearsal_counts check (count > 0)
);
comment on table afterwrite.rehearsal is
    'What came of running the transplanted bodies of triggers that are still on, in transactions that were rolled back.';
comment on column afterwrite.rehearsal.outcome is
    'matched: wrote what the trigger had written. idle: neither wrote. value, missing, extra, error: differs. unseen, mixed, unkeyed, unable: could not be judged.';

create table afterwrite.rehearsed (
    one          boolean not null default true,
    transactions bigint  not null,
    constraint rehearsed_pkey primary key (one),
    constraint rehearsed_one check (one)
);
comment on table afterwrite.rehearsed is
    'How many transactions our rehearsals rolled back: the server counts them among the application''s.';
insert into afterwrite.rehearsed (transactions) values (0);

create function afterwrite.is_own_row(row_xmin xid) returns boolean language sql volatile set search_path = pg_catalog as $$
    -- A row that we can see and whose transaction is still running is of our own transaction, or of a part of it.
    select pg_xact_status(
               (((pg_current_xact_id()::text::bigint >> 32 << 32) + row_xmin::text::bigint)::text)::xid8)
           = 'in progress'
     where row_xmin::text::bigint >= pg_current_xact_id()::text::bigint % 4294967296
$$;
comment on function afterwrite.is_own_row(xid) is 'Whether a row that can be seen was written by the running transaction.';

create table afterwrite.relation_name (
    relation  text   not null,
    since_lsn pg_lsn not null,
    oid       oid    not null,
    constraint relation_name_pkey primary key (relation, since_lsn)
);
comment on table afterwrite.relation_name is
    'Which table had a (quoted) name from which commit on, as capture met it: deferred bodies run for their table, whatever it was called then, and for no other of that name.';

create function afterwrite.note_name(of_relation text, of_oid oid, at_lsn pg_lsn) returns void
language sql set search_path = pg_catalog as $$
    insert into afterwrite.relation_name (relation, since_lsn, oid)
    select of_relation, at_lsn, of_oid
     where of_oid is distinct from (
               select n.oid
                 from afterwrite.relation_name n
                where n.relation = of_relation and n.since_lsn <= at_lsn
                order by n.since_lsn desc
                limit 1)
        on conflict do nothing
$$;
comment on function afterwrite.note_name(text, oid, pg_lsn) is 'Remember that this table has this name from here on, where that is news.';
