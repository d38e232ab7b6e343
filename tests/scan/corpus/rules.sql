-- Business logic in the database, and what nobody can know.

create schema ext;
create extension moddatetime schema ext;
create language plv8 handler plpgsql_call_handler;

-- The row itself. ----------------------------------------------------------------------------------------------------------
create schema rw;
create table rw.t (id int primary key, a int, b text, tags text[], doc jsonb, words tsvector, updated_at timestamptz, deleted_at timestamptz);
-- = keep: changes-new
create trigger moddatetime before update on rw.t for each row execute function ext.moddatetime(updated_at);
-- = keep: changes-new
create trigger search_vector before insert or update on rw.t
  for each row execute function tsvector_update_trigger(words, 'pg_catalog.english', b);
-- = keep: cancels-row
create trigger suppress before update on rw.t for each row execute function suppress_redundant_updates_trigger();
create function rw.alias() returns trigger language plpgsql as $$
declare
  fresh alias for new;
begin
  fresh.b := upper(fresh.b);
  return fresh;
end $$;
-- = keep: changes-new
create trigger by_alias before insert on rw.t for each row execute function rw.alias();
create function rw.into_field() returns trigger language plpgsql as $$
begin
  select max(a) + 1 into new.a from rw.t;
  return new;
end $$;
-- = keep: changes-new
create trigger into_field before insert on rw.t for each row execute function rw.into_field();
create function rw.into_row() returns trigger language plpgsql as $$
begin
  execute 'select ($1).*' into new using new;
  new := jsonb_populate_record(new, '{"a": 1}');
  return new;
end $$;
-- = keep: changes-new
create trigger into_row before insert on rw.t for each row execute function rw.into_row();
create function rw.element() returns trigger language plpgsql as $$
begin
  new.tags[1] := 'x';
  return new;
end $$;
-- = keep: changes-new
create trigger element before insert on rw.t for each row execute function rw.element();
create function rw.other_row() returns trigger language plpgsql as $$
declare
  made rw.t;
begin
  made := new;
  made.b := 'other';
  return made;
end $$;
-- = keep: returns-another-row
create trigger other_row before insert on rw.t for each row execute function rw.other_row();
create function rw.undo() returns trigger language plpgsql as $$
begin
  return old;
end $$;
-- = keep: returns-another-row
create trigger undo before update on rw.t for each row execute function rw.undo();
create function rw.never_deleted() returns trigger language plpgsql as $$
begin
  return new;
end $$;
-- = keep: cancels-row
create trigger never_deleted before delete on rw.t for each row execute function rw.never_deleted();
create function rw.soft_delete() returns trigger language plpgsql as $$
begin
  update rw.t set deleted_at = now() where id = old.id;
  return null;
end $$;
-- = keep: cancels-row
create trigger soft_delete before delete on rw.t for each row execute function rw.soft_delete();
create function rw.single_default() returns trigger language plpgsql as $$
begin
  update rw.t set b = null where id <> new.id and b = 'default';
  return null;
end $$;
-- = keep: writes-own-table
create trigger single_default after insert or update on rw.t
  for each row when (new.b = 'default') execute function rw.single_default();
create function rw.double(n int) returns int language sql immutable return n * 2;
create function rw.derived() returns trigger language plpgsql as $$
begin
  new.a := rw.double(new.a);
  return new;
end $$;
-- = keep: changes-new
create trigger derived before insert on rw.t for each row execute function rw.derived();
create function rw.after_sets_nothing() returns trigger language plpgsql as $$
begin
  new.b := 'ignored';
  return new;
end $$;
-- = retire: has-no-effect
create trigger after_sets_nothing after insert on rw.t for each row execute function rw.after_sets_nothing();

create table rw.measure (id int, day date);
create table rw.measure_2020 (check (day < '2021-01-01')) inherits (rw.measure);
create function rw.route() returns trigger language plpgsql as $$
begin
  execute 'insert into rw.measure_' || extract(year from new.day) || ' values ($1.*)' using new;
  return null;
end $$;
-- = keep: cancels-row
create trigger route before insert on rw.measure for each row execute function rw.route();
create view rw.v as select id, a from rw.t;
create function rw.write_view() returns trigger language plpgsql as $$
begin
  insert into rw.t (id, a) values (new.id, new.a);
  return new;
end $$;
-- = keep: instead-of
create trigger write_view instead of insert on rw.v for each row execute function rw.write_view();

-- Refusals. ----------------------------------------------------------------------------------------------------------------
create schema no;
create table no.t (id int primary key, kind text, owner int, starts date, ends date);
create table no.person (id int primary key);
create table no.t_log (id int, op text);
create function no.check_dates() returns trigger language plpgsql as $$
begin
  if new.ends < new.starts then
    raise exception using message = 'ends before it starts', errcode = '23514';
  end if;
  insert into no.t_log values (new.id, tg_op);
  return null;
end $$;
-- = keep: raises
create trigger check_dates_and_log after insert on no.t for each row execute function no.check_dates();
create function no.must_exist() returns trigger language plpgsql as $$
declare
  p no.person;
begin
  select * into strict p from no.person where id = new.owner;
  return null;
end $$;
-- = keep: raises
create trigger must_exist after insert on no.t for each row execute function no.must_exist();
create function no.asserts() returns trigger language plpgsql as $$
begin
  assert new.kind is not null, 'a kind';
  return null;
end $$;
-- = keep: raises
create trigger asserts after insert on no.t for each row execute function no.asserts();
create function no.cases() returns trigger language plpgsql as $$
begin
  case new.kind
    when 'a' then insert into no.t_log values (new.id, 'a');
    when 'b' then null;
  end case;
  return null;
end $$;
-- = keep: raises
create trigger cases after insert on no.t for each row execute function no.cases();
create function no.deep_check(k text) returns boolean language plpgsql as $$
begin
  if k = 'bad' then
    raise sqlstate 'P0001' using message = 'bad';
  end if;
  return true;
end $$;
create function no.deeper(k text) returns boolean language sql as $$ select no.deep_check(k) $$;
create function no.calls_check() returns trigger language plpgsql as $$
begin
  perform no.deeper(new.kind);
  insert into no.t_log values (new.id, tg_op);
  return null;
end $$;
-- = keep: raises
create trigger calls_check after insert on no.t for each row execute function no.calls_check();
create function no.just_log() returns trigger language plpgsql as $$
begin
  insert into no.t_log values (new.id, tg_op);
  return null;
end $$;
-- = keep: raises
create trigger raises_in_when after update on no.t for each row when (no.deep_check(new.kind)) execute function no.just_log();
create function no.translates() returns trigger language plpgsql as $$
begin
  insert into no.t_log values (new.id, tg_op);
  return null;
exception when unique_violation then
  raise exception 'there is one already';
end $$;
-- = keep: raises
create trigger translates after insert on no.t for each row execute function no.translates();
-- = keep: constraint-trigger
create constraint trigger late after insert on no.t deferrable initially deferred for each row execute function no.just_log();
create table no.of_extension (id int primary key);
alter extension moddatetime add table no.of_extension;
-- = keep: extension-owned
create trigger of_extension after insert on no.of_extension for each row execute function no.just_log();
create function no.unreadable_and_refusing() returns trigger language plpgsql as $$
begin
  execute (select op from no.t_log limit 1);
  if new.kind = 'x' then
    raise exception 'no x';
  end if;
  return null;
end $$;
-- = keep: raises
create trigger unreadable_and_refusing after insert on no.t for each row execute function no.unreadable_and_refusing();

-- What cannot be known. ---------------------------------------------------------------------------------------------------
create schema dark;
create table dark.t (id int primary key, v text);
create table dark.t_log (id int, op text);
create table dark.rule (statement text, target text);
create function dark.v8() returns trigger language plv8 as $$ plv8.execute('insert into dark.t_log values (1)') $$;
-- = review: other-language
create trigger v8 after insert on dark.t for each row execute function dark.v8();
create function dark.v8_helper(x text) returns text language plv8 immutable as $$ return x $$;
create function dark.calls_v8() returns trigger language plpgsql as $$
begin
  insert into dark.t_log values (new.id, dark.v8_helper(new.v));
  return null;
end $$;
-- = review: other-language
create trigger calls_v8 after insert on dark.t for each row execute function dark.calls_v8();
create function dark.stored_statement() returns trigger language plpgsql as $$
declare
  r record;
begin
  for r in select statement from dark.rule loop
    execute r.statement using new;
  end loop;
  return null;
end $$;
-- = review: dynamic-sql
create trigger stored_statement after insert on dark.t for each row execute function dark.stored_statement();
create function dark.stored_target() returns trigger language plpgsql as $$
declare
  target_table text;
begin
  select target into target_table from dark.rule limit 1;
  execute format('insert into %I values ($1, $2)', target_table) using new.id, tg_op;
  return null;
end $$;
-- = review: dynamic-sql
create trigger stored_target after insert on dark.t for each row execute function dark.stored_target();
create function dark.from_row() returns trigger language plpgsql as $$
begin
  execute 'insert into dark.t_log values (1, ' || new.v || ')';
  return null;
end $$;
-- = review: dynamic-sql
create trigger from_row after insert on dark.t for each row execute function dark.from_row();
create function dark.for_dynamic() returns trigger language plpgsql as $$
declare
  r record;
begin
  for r in execute 'select * from ' || new.v loop
    insert into dark.t_log values (r.id, tg_op);
  end loop;
  return null;
end $$;
-- = review: dynamic-sql
create trigger for_dynamic after insert on dark.t for each row execute function dark.for_dynamic();
create function dark.missing_function() returns trigger language plpgsql as $$
begin
  perform pgq.insert_event('q', tg_op, new.v);
  return null;
end $$;
-- = review: unknown-function
create trigger missing_function after insert on dark.t for each row execute function dark.missing_function();
create function dark.missing_table() returns trigger language plpgsql as $$
begin
  insert into dark.dropped_log values (new.id);
  return null;
end $$;
-- = review: unknown-table
create trigger missing_table after insert on dark.t for each row execute function dark.missing_table();
create function dark.temporary() returns trigger language plpgsql as $$
begin
  create temp table if not exists seen (id int);
  insert into dark.t_log values (new.id, tg_op);
  return null;
end $$;
-- = review: runs-commands
create trigger temporary after insert on dark.t for each row execute function dark.temporary();
create function dark.setting() returns trigger language plpgsql as $$
begin
  perform set_config('app.last_id', new.id::text, true);
  return null;
end $$;
-- = review: sets-session-state
create trigger setting after insert on dark.t for each row execute function dark.setting();
create function dark.locking() returns trigger language plpgsql as $$
begin
  perform pg_advisory_xact_lock(hashtext('t'));
  insert into dark.t_log values (new.id, tg_op);
  return null;
end $$;
-- = review: takes-lock
create trigger locking after insert on dark.t for each row execute function dark.locking();
create function dark.log() returns trigger language plpgsql as $$
begin
  insert into dark.t_log values (new.id, tg_op);
  return null;
end $$;
-- = review: pg-trigger-depth
create trigger depth after update on dark.t for each row when (pg_trigger_depth() = 0) execute function dark.log();
create view dark.t_log_view as select * from dark.t_log;
create function dark.through_view() returns trigger language plpgsql as $$
begin
  insert into dark.t_log_view values (new.id, tg_op);
  return null;
end $$;
-- = review: writes-through-a-view
create trigger through_view after insert on dark.t for each row execute function dark.through_view();
create function dark.c_function(text) returns void language c volatile as '$libdir/moddatetime', 'moddatetime';
create function dark.calls_c() returns trigger language plpgsql as $$
begin
  perform dark.c_function(new.v);
  return null;
end $$;
-- = review: unknown-function
create trigger calls_c after insert on dark.t for each row execute function dark.calls_c();
create function dark.half() returns trigger language plpgsql as $$
begin
  if tg_op = 'TRUNCATE' then
    execute (select statement from dark.rule);
  end if;
  insert into dark.t_log values (new.id, tg_op);
  return null;
end $$;
-- = retire: appends-to-log
create trigger dark_branch_is_dead after insert on dark.t for each row execute function dark.half();
create function dark.locks_rows() returns trigger language plpgsql as $$
begin
  perform 1 from dark.rule for update;
  insert into dark.t_log values (new.id, tg_op);
  return null;
end $$;
-- = review: takes-lock
create trigger locks_rows after insert on dark.t for each row execute function dark.locks_rows();
create procedure dark.shape(inout v text) language plpgsql as $$ begin v := upper(v); end $$;
create function dark.calls_procedure() returns trigger language plpgsql as $$
begin
  call dark.shape(new.v);
  return new;
end $$;
-- = review: unknown-function
create trigger calls_procedure before insert on dark.t for each row execute function dark.calls_procedure();
create unlogged table dark.fleeting (id int primary key);
-- = keep: not-in-wal
create trigger fleeting after insert on dark.fleeting for each row execute function dark.log();
