-- Triggers for each statement. Deferred, they run once a transaction and table, with all of its rows: a body that would do
-- something else then is for a person to look at; one that adds up, row by row or in sums, comes to the same.

create table account (id bigint primary key, name text not null, total numeric default 0, entries bigint default 0, touched_at timestamptz);
create table entry (id bigint primary key, account_id bigint not null references account, amount numeric not null, tag text not null);
create table tag_total (tag text unique, n bigint default 0, largest numeric);
create table inbound (id bigserial primary key, entry_id bigint, said text);
create table runs (n bigint default 0);
create table batch (id bigserial primary key, n bigint, amount numeric, happened_at timestamptz default now());
create materialized view entry_board as select account_id, sum(amount) as total from entry group by account_id;

-- What comes to the same ------------------------------------------------------------------------------------------------------

create function add_sums() returns trigger language plpgsql as $$
begin
  update account a set total = a.total + s.amount, entries = a.entries + s.n
    from (select account_id, sum(amount) as amount, count(*) as n from fresh group by account_id) s
   where a.id = s.account_id;
  return null;
end $$;
-- = defer: writes-other-table
-- Because: the sums of the statements add up to the sum of the transaction.
create trigger add_sums after insert on entry referencing new table as fresh for each statement execute function add_sums();

create function add_scalar() returns trigger language plpgsql as $$
begin
  update runs set n = n + (select count(*) from fresh);
  return null;
end $$;
-- = defer: writes-other-table
create trigger add_scalar after insert on entry referencing new table as fresh for each statement execute function add_scalar();

create function add_by_variable() returns trigger language plpgsql as $$
declare
  rows bigint;
begin
  select count(*) into rows from fresh;
  update runs set n = n + rows;
  return null;
end $$;
-- = defer: writes-other-table
create trigger add_by_variable after insert on entry referencing new table as fresh for each statement execute function add_by_variable();

create function add_upserts() returns trigger language plpgsql as $$
begin
  insert into tag_total as t (tag, n) select f.tag, count(*) from fresh f group by f.tag
  on conflict (tag) do update set n = t.n + excluded.n;
  return null;
end $$;
-- = defer: writes-other-table
create trigger add_upserts after insert on entry referencing new table as fresh for each statement execute function add_upserts();

create function add_in_loop() returns trigger language plpgsql as $$
declare
  r record;
begin
  for r in select account_id, amount from fresh loop
    update account set total = total + r.amount, entries = entries + 1 where id = r.account_id;
    insert into inbound (entry_id, said) values (r.account_id, 'came');
  end loop;
  return null;
end $$;
-- = defer: writes-other-table
-- Because: row by row, however many statements there were.
create trigger add_in_loop after insert on entry referencing new table as fresh for each statement execute function add_in_loop();

create function pass_on() returns trigger language plpgsql as $$
begin
  insert into inbound (entry_id, said) select f.id, f.tag || ' of ' || a.name from fresh f join account a on a.id = f.account_id;
  return null;
end $$;
-- = defer: writes-other-table
create trigger pass_on after insert on entry referencing new table as fresh for each statement execute function pass_on();

create function touch_accounts() returns trigger language plpgsql as $$
begin
  update account set touched_at = now() where id in (select account_id from fresh);
  return null;
end $$;
-- = defer: writes-other-table
-- Because: to be touched once or three times is the same.
create trigger touch_accounts after insert on entry referencing new table as fresh for each statement execute function touch_accounts();

create function make_tags() returns trigger language plpgsql as $$
begin
  insert into tag_total (tag) select distinct tag from fresh on conflict do nothing;
  return null;
end $$;
-- = defer: writes-other-table
create trigger make_tags after insert on entry referencing new table as fresh for each statement execute function make_tags();

create function forget_inbound() returns trigger language plpgsql as $$
begin
  delete from inbound where entry_id in (select id from gone);
  return null;
end $$;
-- = defer: writes-other-table
create trigger forget_inbound after delete on entry referencing old table as gone for each statement execute function forget_inbound();

create function show_board() returns trigger language plpgsql as $$
begin
  refresh materialized view entry_board;
  perform pg_notify('board', tg_table_name);
  return null;
end $$;
-- = defer: writes-other-table
create trigger show_board after insert or update or delete on entry for each statement execute function show_board();

create function tell_each() returns trigger language plpgsql as $$
begin
  perform pg_notify('entries', id::text) from fresh;
  return null;
end $$;
-- = defer: notifies
create trigger tell_each after insert on entry referencing new table as fresh for each statement execute function tell_each();

create function tell_if_large() returns trigger language plpgsql as $$
begin
  if exists (select from fresh where amount > 1000) then
    notify large_entries;
  end if;
  return null;
end $$;
-- = defer: notifies
-- Because: one large row in any of the statements is one large row in the transaction.
create trigger tell_if_large after insert on entry referencing new table as fresh for each statement execute function tell_if_large();

create function keep_rows() returns trigger language plpgsql as $$
begin
  insert into entry_log (op, row_data) select tg_op, to_jsonb(f) from fresh f;
  return null;
end $$;
create table entry_log (id bigserial primary key, op text, row_data jsonb, at timestamptz default now());
-- = retire: appends-to-log
-- Because: a log of rows goes, and the statement with it.
create trigger keep_rows after insert on entry referencing new table as fresh for each statement execute function keep_rows();

-- S1: counts runs or statements --------------------------------------------------------------------------------------------------

create function count_runs() returns trigger language plpgsql as $$
begin
  update runs set n = n + 1;
  return null;
end $$;
-- = review: counts-statements
create trigger count_runs after insert on entry for each statement execute function count_runs();

create function note_batch() returns trigger language plpgsql as $$
begin
  insert into inbound (said) values ('a statement wrote entries');
  return null;
end $$;
-- = review: counts-statements
create trigger note_batch after insert on entry referencing new table as fresh for each statement execute function note_batch();

create function add_upsert_of_one() returns trigger language plpgsql as $$
begin
  insert into tag_total as t (tag, n) values ('statements', 1) on conflict (tag) do update set n = t.n + 1;
  return null;
end $$;
-- = review: counts-statements
create trigger add_upsert_of_one after update on entry for each statement execute function add_upsert_of_one();

create function once_for_each_account() returns trigger language plpgsql as $$
begin
  update account set entries = entries + 1 where id in (select account_id from fresh);
  return null;
end $$;
-- = review: counts-statements
-- Because: one a statement and account, however many rows: two statements are two, one transaction is one.
create trigger once_for_each_account after insert on entry referencing new table as fresh for each statement execute function once_for_each_account();

create function distinct_inbound() returns trigger language plpgsql as $$
begin
  insert into inbound (said) select distinct tag from fresh;
  return null;
end $$;
-- = review: counts-statements
create trigger distinct_inbound after insert on entry referencing new table as fresh for each statement execute function distinct_inbound();

create function through_function() returns trigger language plpgsql as $$
begin
  perform note_run('entries');
  return null;
end $$;
create function note_run(what text) returns void language sql as $$ insert into inbound (said) values (what) $$;
-- = review: counts-statements
create trigger through_function after insert on entry for each statement execute function through_function();

create function through_function_by_row() returns trigger language plpgsql as $$
begin
  perform note_run(tag) from fresh;
  return null;
end $$;
-- = defer: writes-other-table
create trigger through_function_by_row after insert on entry referencing new table as fresh for each statement execute function through_function_by_row();

-- S2: weighs the rows of a statement together -------------------------------------------------------------------------------------

create function note_size() returns trigger language plpgsql as $$
begin
  insert into batch (n, amount) select count(*), sum(amount) from fresh;
  return null;
end $$;
-- = review: weighs-its-rows
create trigger note_size after insert on entry referencing new table as fresh for each statement execute function note_size();

create function tell_when_many() returns trigger language plpgsql as $$
begin
  if (select count(*) from fresh) > 100 then
    notify many_entries;
  end if;
  return null;
end $$;
-- = review: weighs-its-rows
create trigger tell_when_many after insert on entry referencing new table as fresh for each statement execute function tell_when_many();

create function tell_when_many_by_variable() returns trigger language plpgsql as $$
declare
  rows bigint;
begin
  select count(*) into rows from fresh;
  if rows > 100 then
    notify many_entries;
  end if;
  return null;
end $$;
-- = review: weighs-its-rows
create trigger tell_when_many_by_variable after insert on entry referencing new table as fresh for each statement execute function tell_when_many_by_variable();

create function keep_average() returns trigger language plpgsql as $$
begin
  update tag_total t set largest = (select avg(amount) from fresh f where f.tag = t.tag);
  return null;
end $$;
-- = review: weighs-its-rows
create trigger keep_average after insert on entry referencing new table as fresh for each statement execute function keep_average();

create function the_first_only() returns trigger language plpgsql as $$
begin
  insert into inbound (entry_id) select id from fresh order by id limit 1;
  return null;
end $$;
-- = review: weighs-its-rows
create trigger the_first_only after insert on entry referencing new table as fresh for each statement execute function the_first_only();

create function numbered() returns trigger language plpgsql as $$
begin
  insert into inbound (entry_id, said) select id, row_number() over (order by id)::text from fresh;
  return null;
end $$;
-- = review: weighs-its-rows
create trigger numbered after insert on entry referencing new table as fresh for each statement execute function numbered();

create function tell_all() returns trigger language plpgsql as $$
begin
  perform pg_notify('entries', (select json_agg(id) from fresh)::text);
  return null;
end $$;
-- = review: weighs-its-rows
create trigger tell_all after insert on entry referencing new table as fresh for each statement execute function tell_all();

create function tell_count() returns trigger language plpgsql as $$
declare
  rows bigint;
begin
  select count(*) into rows from fresh;
  perform pg_notify('entries', rows::text);
  return null;
end $$;
-- = review: weighs-its-rows
create trigger tell_count after insert on entry referencing new table as fresh for each statement execute function tell_count();

create function overwrite_count() returns trigger language plpgsql as $$
begin
  insert into tag_total (tag, n) select tag, count(*) from fresh group by tag on conflict (tag) do update set n = excluded.n;
  return null;
end $$;
-- = review: weighs-its-rows
create trigger overwrite_count after insert on entry referencing new table as fresh for each statement execute function overwrite_count();

-- S3: sees rows of later statements ------------------------------------------------------------------------------------------------

create function note_changes() returns trigger language plpgsql as $$
begin
  update account a set total = a.total + d.amount
    from (select n.account_id, sum(n.amount - o.amount) as amount from newer n join older o on o.id = n.id group by n.account_id) d
   where a.id = d.account_id;
  return null;
end $$;
-- = review: sees-later-rows
-- Because: a row updated twice is twice in each table, and the join makes four pairs of it.
create trigger note_changes after update on entry referencing old table as older new table as newer for each statement execute function note_changes();

create function all_pairs() returns trigger language plpgsql as $$
begin
  insert into inbound (entry_id, said) select n.id, o.tag from newer n, older o;
  return null;
end $$;
-- = review: sees-later-rows
create trigger all_pairs after update on entry referencing old table as older new table as newer for each statement execute function all_pairs();

create function note_state() returns trigger language plpgsql as $$
begin
  insert into batch (n) select (select count(*) from entry e where e.tag = f.tag) from fresh f;
  return null;
end $$;
-- = review: sees-later-rows
create trigger note_state after insert on entry referencing new table as fresh for each statement execute function note_state();

create function sum_again() returns trigger language plpgsql as $$
begin
  update account a set total = (select coalesce(sum(e.amount), 0) from entry e where e.account_id = a.id)
   where a.id in (select account_id from fresh);
  return null;
end $$;
-- = defer: writes-other-table
-- Because: it works the whole sum out again, and the last one is right whenever it was made.
create trigger sum_again after insert on entry referencing new table as fresh for each statement execute function sum_again();

create function tell_when_full() returns trigger language plpgsql as $$
begin
  if (select count(*) from entry) = 1000 then
    notify full_house;
  end if;
  return null;
end $$;
-- = review: sees-later-rows
create trigger tell_when_full after insert on entry for each statement execute function tell_when_full();

-- S4: meets a row more than once ----------------------------------------------------------------------------------------------------

create function upsert_rows() returns trigger language plpgsql as $$
begin
  insert into tag_total (tag, largest) select tag, amount from newer on conflict (tag) do update set largest = excluded.largest;
  return null;
end $$;
-- = review: meets-a-row-twice
-- Because: the second row of a tag in one command is an error (21000), and one transaction has more of them than a statement.
create trigger upsert_rows after update on entry referencing new table as newer for each statement execute function upsert_rows();

create function copy_values() returns trigger language plpgsql as $$
begin
  update inbound i set said = n.tag from newer n where i.entry_id = n.id;
  return null;
end $$;
-- = review: meets-a-row-twice
-- Because: of two versions of a row, UPDATE … FROM takes either.
create trigger copy_values after update on entry referencing new table as newer for each statement execute function copy_values();

create function merge_rows() returns trigger language plpgsql as $$
begin
  merge into tag_total t using newer n on t.tag = n.tag
   when matched then update set largest = n.amount
   when not matched then insert (tag, largest) values (n.tag, n.amount);
  return null;
end $$;
-- = review: meets-a-row-twice
create trigger merge_rows after update on entry referencing new table as newer for each statement execute function merge_rows();

create function copy_in_loop() returns trigger language plpgsql as $$
declare
  r record;
begin
  for r in select id, tag from newer loop
    update inbound set said = r.tag where entry_id = r.id;
  end loop;
  return null;
end $$;
-- = defer: writes-other-table
-- Because: the versions of a row come in the order in which they were written, and the last one stays.
create trigger copy_in_loop after update on entry referencing new table as newer for each statement execute function copy_in_loop();

-- S5: is no statement of the kind, or asks --------------------------------------------------------------------------------------------

create function only_outermost() returns trigger language plpgsql as $$
begin
  if pg_trigger_depth() = 1 then
    notify entries;
  end if;
  return null;
end $$;
-- = review: pg-trigger-depth
create trigger only_outermost after insert on entry for each statement execute function only_outermost();

create function forbid_many() returns trigger language plpgsql as $$
begin
  if (select count(*) from gone) > 10 then
    raise exception 'not so many at once';
  end if;
  return null;
end $$;
-- = keep: raises
create trigger forbid_many after delete on entry referencing old table as gone for each statement execute function forbid_many();

create function before_all() returns trigger language plpgsql as $$
begin
  notify entries_to_come;
  return null;
end $$;
-- = review: before-statement
-- Because: it runs for a statement before there is a row to run it for afterwards.
create trigger before_all before insert on entry for each statement execute function before_all();
