-- Refusals that do not say RAISE, effects that hide in expressions, other languages, dynamic SQL, SQL-standard bodies,
-- constraint triggers, session state, views and foreign tables.

create language plpython3u handler plpgsql_call_handler;
create language plperl handler plpgsql_call_handler;
create table thing (id int primary key, code text, qty int, price numeric, payload text, kind text, email text, parent int);
create table thing_log (id bigserial primary key, thing_id int, op text, data jsonb, at timestamptz default now());

create function plain_log() returns trigger language plpgsql as $$
begin
  insert into thing_log (thing_id, op) values (new.id, tg_op);
  return null;
end $$;

-- Refusing without RAISE. ------------------------------------------------------------------------------------------------
create domain email_address as text check (value ~ '^[^@]+@[^@]+$');
create function check_email() returns trigger language plpgsql as $$
declare
  checked email_address := new.email;
begin
  insert into thing_log (thing_id, op) values (new.id, checked);
  return null;
end $$;
-- = keep
-- Because: the assignment to a variable of a domain fails for what is no address.
create trigger check_email after insert on thing for each row execute function check_email();
create function check_payload() returns trigger language plpgsql as $$
begin
  perform new.payload::jsonb;
  return new;
end $$;
-- = keep
-- Because: a cast that is thrown away is there for its error: what is no JSON is refused.
create trigger check_payload before insert or update on thing for each row execute function check_payload();
create function check_divides() returns trigger language plpgsql as $$
begin
  perform 1 / (case when new.qty < 0 then 0 else 1 end);
  return new;
end $$;
-- = keep
-- Because: an old trick: the division by zero refuses negative quantities.
create trigger check_divides before insert on thing for each row execute function check_divides();
create function fail(message text) returns void language plpgsql as $$
begin
  raise exception '%', message;
end $$;
create function check_in_sql() returns trigger language plpgsql as $$
begin
  perform fail('too many') where new.qty > 100;
  insert into thing_log (thing_id, op) values (new.id, tg_op);
  return null;
end $$;
-- = keep: raises
create trigger check_in_sql after insert on thing for each row execute function check_in_sql();
create function check_in_case() returns trigger language plpgsql as $$
declare
  dummy text;
begin
  dummy := case when new.price < 0 then fail('negative')::text else 'ok' end;
  insert into thing_log (thing_id, op) values (new.id, dummy);
  return null;
end $$;
-- = keep: raises
create trigger check_in_case after update on thing for each row execute function check_in_case();
create function fail_if(condition boolean, message text) returns boolean language sql as $$
  select case when condition then (select fail(message) is null) else true end
$$;
-- = keep: raises
-- Because: the WHEN itself refuses, through two functions.
create trigger fails_in_when after insert on thing for each row when (fail_if(new.kind = 'bad', 'bad kind')) execute function plain_log();
create function must_have_parent() returns trigger language plpgsql as $$
declare
  p thing%rowtype;
begin
  if new.parent is null then
    return new;
  end if;
  select * into strict p from thing where id = new.parent;
  return new;
exception
  when no_data_found then
    raise foreign_key_violation using message = 'no such parent';
end $$;
-- = keep: raises
create trigger must_have_parent before insert on thing for each row execute function must_have_parent();
create function swallowed() returns trigger language plpgsql as $$
begin
  begin
    insert into thing_log (thing_id, op) values (new.id, tg_op);
    if new.kind = 'secret' then
      raise exception 'not to be logged';
    end if;
  exception when raise_exception then
    null;
  end;
  return null;
end $$;
-- = retire: appends-to-log
-- Because: its own handler swallows the exception: nothing is refused, only the entry is taken back.
create trigger swallowed after delete on thing for each row execute function swallowed();

-- Effects that hide. ---------------------------------------------------------------------------------------------------------
create table usage (kind text primary key, n int default 0);
create function note_usage(k text) returns boolean language plpgsql as $$
begin
  update usage set n = n + 1 where kind = k;
  return true;
end $$;
-- = defer: writes-other-table
-- Because: the WHEN counts.
create trigger counts_in_when after insert on thing for each row when (note_usage(new.kind)) execute function plain_log();
create function counts_in_values() returns trigger language plpgsql as $$
begin
  insert into thing_log (thing_id, op) values (new.id, case when note_usage(new.kind) then 'counted' end);
  return null;
end $$;
-- = defer: writes-other-table
-- Because: a function among the values counts.
create trigger counts_in_values after update on thing for each row execute function counts_in_values();
create function counts_in_default() returns trigger language plpgsql as $$
declare
  counted boolean default note_usage(tg_table_name);
begin
  insert into thing_log (thing_id, op) values (new.id, counted::text);
  return null;
end $$;
-- = defer: writes-other-table
-- Because: a variable's default counts.
create trigger counts_in_default after insert on thing for each row execute function counts_in_default();
create function counts_in_cte() returns trigger language plpgsql as $$
declare
  how_many int;
begin
  with counted as (update usage set n = n + 1 where kind = new.kind returning n) select max(n) into how_many from counted;
  insert into thing_log (thing_id, op) values (new.id, how_many::text);
  return null;
end $$;
-- = defer: writes-other-table
-- Because: an UPDATE inside a WITH is an UPDATE.
create trigger counts_in_cte after insert on thing for each row execute function counts_in_cte();
create function bump(a int, k text) returns int language plpgsql as $$
begin
  update usage set n = n + a where kind = k;
  return a;
end $$;
create operator +! (leftarg = int, rightarg = text, function = bump);
create function counts_in_operator() returns trigger language plpgsql as $$
begin
  insert into thing_log (thing_id, op) values (1 +! new.kind, tg_op);
  return null;
end $$;
-- = defer: writes-other-table
-- Because: an operator is a function, and this one counts.
create trigger counts_in_operator after insert on thing for each row execute function counts_in_operator();
create sequence change_seq;
create function advances_sequence() returns trigger language plpgsql as $$
begin
  perform nextval('change_seq');
  return null;
end $$;
-- = review: counts-statements
-- Because: whoever looks at the sequence sees that something changed, and how often.
create trigger advances_sequence after insert or update on thing for each statement execute function advances_sequence();
create sequence thing_code_seq;
create function keeps_sequence_ahead() returns trigger language plpgsql as $$
begin
  perform setval('thing_code_seq', greatest(new.id, (select last_value from thing_code_seq)));
  return null;
end $$;
-- = keep
-- Because: the next default is drawn from the sequence, and must not collide with the id that was just given by hand.
create trigger keeps_sequence_ahead after insert on thing for each row execute function keeps_sequence_ahead();
create function through_arguments(variadic what text[]) returns void language plpgsql as $$
begin
  insert into thing_log (op) select unnest(what);
end $$;
create function calls_variadic() returns trigger language plpgsql as $$
begin
  perform through_arguments(tg_op, new.kind, new.code);
  perform through_arguments(variadic array[tg_op]);
  return null;
end $$;
-- = retire: appends-to-log
create trigger calls_variadic after insert on thing for each row execute function calls_variadic();
create function deep4(i int, what text) returns void language plpgsql as $$ begin insert into thing_log (thing_id, op) values (i, what); end $$;
create function deep3(i int, what text default 'x') returns void language sql as $$ select deep4(i, what) $$;
create function deep2(what text, i int) returns void language plpgsql as $$ begin perform deep3(what => what, i => i); end $$;
create procedure deep1(i int, what text) language plpgsql as $$ begin perform deep2(what, i); end $$;
create function calls_deep() returns trigger language plpgsql as $$
begin
  call deep1(new.id, tg_op);
  return null;
end $$;
-- = retire: appends-to-log
create trigger calls_deep after update on thing for each row execute function calls_deep();

-- SQL-standard bodies. ----------------------------------------------------------------------------------------------------------
create procedure std_log(i int, what text) begin atomic
  insert into thing_log (thing_id, op) values (i, what);
end;
create function calls_std_log() returns trigger language plpgsql as $$
begin
  call std_log(new.id, tg_op);
  return null;
end $$;
-- = retire: appends-to-log
create trigger calls_std_log after insert on thing for each row execute function calls_std_log();
create function std_count(k text) returns int language sql begin atomic
  insert into thing_log (op) values (k);
  update usage set n = n + 1 where kind = k returning n;
end;
create function calls_std_count() returns trigger language plpgsql as $$
begin
  perform std_count(new.kind);
  return null;
end $$;
-- = defer: writes-other-table
create trigger calls_std_count after insert on thing for each row execute function calls_std_count();
create function std_return(k text) returns boolean language sql immutable return k is not null and length(k) < 10;
create function uses_std_return() returns trigger language plpgsql as $$
begin
  if std_return(new.kind) then
    insert into thing_log (thing_id, op) values (new.id, tg_op);
  end if;
  return null;
end $$;
-- = retire: appends-to-log
create trigger uses_std_return after insert on thing for each row execute function uses_std_return();
create function std_refuse(k text) returns boolean language sql begin atomic
  select fail_if(k = 'bad', 'bad');
end;
create function calls_std_refuse() returns trigger language plpgsql as $$
begin
  if std_refuse(new.kind) then
    insert into thing_log (thing_id, op) values (new.id, tg_op);
  end if;
  return null;
end $$;
-- = keep: raises
create trigger calls_std_refuse after insert on thing for each row execute function calls_std_refuse();

-- Other languages. ---------------------------------------------------------------------------------------------------------------
create function py_audit() returns trigger language plpython3u as $$
plan = plpy.prepare("insert into thing_log (thing_id, op) values ($1, $2)", ["int", "text"])
plpy.execute(plan, [TD["new"]["id"], TD["event"]])
$$;
-- = review: other-language
-- Because: one can read that it logs, and not that it does nothing else.
create trigger py_audit after insert on thing for each row execute function py_audit();
create function perl_modifies() returns trigger language plperl as $$
$_TD->{new}{code} = uc $_TD->{new}{code};
return "MODIFY";
$$;
-- = review: other-language
create trigger perl_modifies before insert on thing for each row execute function perl_modifies();
create function c_helper(text) returns text language c immutable strict as '$libdir/tcn', 'triggered_change_notification';
create function logs_with_c() returns trigger language plpgsql as $$
begin
  insert into thing_log (thing_id, op) values (new.id, c_helper(new.code));
  return null;
end $$;
-- = retire: appends-to-log
-- Because: the function in C is IMMUTABLE: whoever made it promises that it changes nothing.
create trigger logs_with_c after insert on thing for each row execute function logs_with_c();

-- Dynamic SQL. -------------------------------------------------------------------------------------------------------------------
create schema dyn;
create table dyn.thing_history (thing_id int, op text, data jsonb);
create table dyn.target (name text);
create function dyn_history() returns trigger language plpgsql as $$
declare
  sql_text text := 'insert into ' || quote_ident(tg_argv[0]) || '.' || quote_ident(tg_table_name || '_history') || ' (thing_id, op, data) values ($1, $2, $3)';
begin
  execute sql_text using coalesce(new.id, old.id), tg_op, to_jsonb(coalesce(new, old));
  return null;
end $$;
-- = retire: appends-to-log
create trigger dyn_history after insert or update or delete on thing for each row execute function dyn_history('dyn');
create function dyn_own() returns trigger language plpgsql as $$
begin
  execute format('update %s set code = upper(code) where id = $1', tg_relid::regclass) using new.id;
  return null;
end $$;
-- = keep: writes-own-table
-- Because: tg_relid is its own table.
create trigger dyn_own after insert on thing for each row when (new.code is not null) execute function dyn_own();
create function dyn_from_table() returns trigger language plpgsql as $$
declare
  goal dyn.target;
begin
  for goal in select * from dyn.target loop
    execute format('insert into %I (thing_id, op) values ($1, $2)', goal.name) using new.id, tg_op;
  end loop;
  return null;
end $$;
-- = review: dynamic-sql
-- Because: a table says where the rows go.
create trigger dyn_from_table after insert on thing for each row execute function dyn_from_table();
create function dyn_from_row() returns trigger language plpgsql as $$
begin
  execute format('update %I set n = n + 1 where kind = %L', new.kind, new.code);
  return null;
end $$;
-- = review: dynamic-sql
create trigger dyn_from_row after insert on thing for each row execute function dyn_from_row();
create function dyn_value_only() returns trigger language plpgsql as $$
begin
  execute format('insert into thing_log (thing_id, op) values (%s, %L)', new.id, new.kind);
  return null;
end $$;
-- = retire: appends-to-log|dynamic-sql
-- Because: the statement is fixed but for its values, a number and a quoted literal.
create trigger dyn_value_only after insert on thing for each row execute function dyn_value_only();
create function dyn_setting() returns trigger language plpgsql as $$
begin
  execute 'insert into ' || current_setting('app.log_table') || ' (thing_id) values ($1)' using new.id;
  return null;
end $$;
-- = review: dynamic-sql
create trigger dyn_setting after insert on thing for each row execute function dyn_setting();
create function dyn_do() returns trigger language plpgsql as $$
begin
  execute 'create temporary table if not exists touched (id int) on commit drop';
  execute 'insert into touched values ($1)' using new.id;
  return null;
end $$;
-- = review
-- Because: a temporary table that something later in the transaction may look at.
create trigger dyn_do after insert on thing for each row execute function dyn_do();

-- Constraint triggers. ----------------------------------------------------------------------------------------------------------
create function balanced() returns trigger language plpgsql as $$
begin
  if (select sum(price) from thing where parent = new.parent) > 1000 then
    raise exception 'not balanced';
  end if;
  return null;
end $$;
-- = keep: constraint-trigger
create constraint trigger balanced after insert or update on thing deferrable initially deferred
  for each row execute function balanced();
-- = keep: constraint-trigger
-- Because: it only logs; but it was made as a constraint, so that it runs at the end and sees the transaction whole.
create constraint trigger logs_late after update on thing deferrable initially deferred for each row execute function plain_log();

-- Views, foreign tables, unlogged ones. ---------------------------------------------------------------------------------------------
create view thing_view as select id, code, kind from thing;
create function write_thing_view() returns trigger language plpgsql as $$
begin
  update thing set code = new.code where id = old.id;
  insert into thing_log (thing_id, op) values (old.id, 'through the view');
  return new;
end $$;
-- = keep: instead-of
create trigger write_thing_view instead of update on thing_view for each row execute function write_thing_view();
create function note_statement() returns trigger language plpgsql as $$
begin
  insert into thing_log (op) values (tg_op || ' on ' || tg_table_name);
  return null;
end $$;
-- = keep: not-in-wal
-- Because: a statement on a view: the WAL only knows the table underneath.
create trigger note_view after update on thing_view for each statement execute function note_statement();
create foreign data wrapper far;
create server far_away foreign data wrapper far;
create foreign table far_thing (id int, code text) server far_away;
-- = keep: not-in-wal
create trigger note_far after insert or update on far_thing for each row execute function plain_log();
create unlogged table fast_thing (id int, code text);
-- = keep: not-in-wal
-- Because: an unlogged table leaves nothing in the WAL, whatever its trigger does.
create trigger note_fast after insert on fast_thing for each row execute function plain_log();

-- Session state. -----------------------------------------------------------------------------------------------------------------
create function remembers() returns trigger language plpgsql as $$
begin
  perform set_config('app.last_thing', new.id::text, true);
  insert into thing_log (thing_id, op) values (new.id, tg_op);
  return null;
end $$;
-- = review: sets-session-state
create trigger remembers after insert on thing for each row execute function remembers();
create function locks_table() returns trigger language plpgsql as $$
begin
  lock table usage in share row exclusive mode;
  insert into thing_log (thing_id, op) values (new.id, tg_op);
  return null;
end $$;
-- = review: takes-lock
create trigger locks_table after insert on thing for each row execute function locks_table();
create function skips_nested() returns trigger language plpgsql as $$
begin
  if pg_trigger_depth() > 1 then
    return null;
  end if;
  insert into thing_log (thing_id, op) values (new.id, tg_op);
  return null;
end $$;
-- = review: pg-trigger-depth
create trigger skips_nested after update on thing for each row execute function skips_nested();
create function listens() returns trigger language plpgsql as $$
begin
  listen things;
  return null;
end $$;
-- = review: runs-commands
create trigger listens after insert on thing for each statement execute function listens();
create function becomes_other() returns trigger language plpgsql as $$
begin
  set local role pg_read_all_data;
  insert into thing_log (thing_id, op) values (new.id, tg_op);
  return null;
end $$;
-- = review
-- Because: it changes the role of the rest of the transaction.
create trigger becomes_other after insert on thing for each row execute function becomes_other();

-- Next to what cannot be read. ----------------------------------------------------------------------------------------------
create table gate (id int primary key, who text);
create table gate_log (who text, at timestamptz default now());
create function log_gate() returns trigger language plpgsql as $$
begin
  insert into gate_log (who) values (new.who);
  return null;
end $$;
-- = review
-- Because: a guard in Python names gate_log; whether it lets somebody in by it cannot be read.
create trigger log_gate after insert on gate for each row execute function log_gate();
create function guard_gate() returns trigger language plpython3u as $$
seen = plpy.execute("select count(*) as n from gate_log where at > now() - interval '1 minute'")
if seen[0]["n"] > 10:
    raise plpy.Error("too many")
$$;
-- = review: other-language
create trigger guard_gate before insert on gate for each row execute function guard_gate();

create table box (id int primary key, shelf int);
create table box_audit (box int, shelf int, op text, at timestamptz default now());
create function log_box() returns trigger language plpgsql as $$
begin
  insert into box_audit (box, shelf, op) values (new.id, new.shelf, tg_op);
  return null;
end $$;
-- = review
-- Because: a function in Perl, which the application calls, names box_audit; what it does by it cannot be read.
create trigger log_box after insert or update on box for each row execute function log_box();
create function shelf_is_free(which int) returns boolean language plperl as $$
return spi_exec_query("select 1 from box_audit where shelf = $_[0]")->{processed} == 0;
$$;

create table sale (id int primary key, item int);
create table item (id int primary key, sold int default 0);
create function count_sale() returns trigger language plpgsql as $$
begin
  update item set sold = sold + 1 where id = new.item;
  return null;
end $$;
-- = review
-- Because: the UPDATE sets off a trigger in Perl, which may refuse it: the sale hangs on that.
create trigger count_sale after insert on sale for each row execute function count_sale();
create function guard_item() returns trigger language plperl as $$
elog(ERROR, "sold out") if $_TD->{new}{sold} > 100;
return;
$$;
-- = review: other-language
create trigger guard_item before update on item for each row execute function guard_item();
