-- Traps, written when the other scenes were all right: constraints of the log that refuse the writer, readers of the log that
-- hide, effects in every corner of an expression, names that mean something else, rows that change in unusual ways.

create extension hstore;
create table thing (id int primary key, code text, kind text, qty int, owner int, tags text[], n int, changed_at timestamptz);
create table thing_log (id bigserial primary key, thing_id int, op text, data jsonb, at timestamptz default now());
create table usage (kind text primary key, n int default 0);
create function note_usage(k text) returns boolean language plpgsql as $$
begin
  update usage set n = n + 1 where kind = k;
  return true;
end $$;

-- The log's own constraints refuse the writer. --------------------------------------------------------------------------
create table actor (id int primary key);
create table actor_log (actor_id int not null references actor, thing_id int, at timestamptz default now());
create function log_actor() returns trigger language plpgsql as $$
begin
  insert into actor_log (actor_id, thing_id) values (new.owner, new.id);
  return null;
end $$;
-- = keep: enforced-target
-- Because: thing.owner has no foreign key, the log's actor_id has: an owner that does not exist is refused through the log.
create trigger log_actor after insert on thing for each row execute function log_actor();
create table reason_log (thing_id int, reason text not null, at timestamptz default now());
create function log_reason() returns trigger language plpgsql as $$
begin
  insert into reason_log (thing_id, reason) values (new.id, current_setting('app.reason', true));
  return null;
end $$;
-- = keep
-- Because: NOT NULL and a setting that may be missing: whoever gives no reason may not write. That is a rule, not a log.
create trigger log_reason after update on thing for each row execute function log_reason();
create domain sku as text check (value ~ '^[A-Z]{3}-\d+$');
create table sku_log (sku sku, thing_id int, at timestamptz default now());
create function log_sku() returns trigger language plpgsql as $$
begin
  insert into sku_log (sku, thing_id) values (new.code, new.id);
  return null;
end $$;
-- = keep
-- Because: the log's column is of a domain: a code that is no SKU is refused through the log.
create trigger log_sku after insert on thing for each row execute function log_sku();
create table paid_log (thing_id int, kind text, at timestamptz default now());
create unique index paid_once on paid_log (thing_id) where kind = 'paid';
create function log_paid() returns trigger language plpgsql as $$
begin
  insert into paid_log (thing_id, kind) values (new.id, new.kind);
  return null;
end $$;
-- = keep: enforced-target
-- Because: a partial unique index: the same thing is not paid twice.
create trigger log_paid after update on thing for each row execute function log_paid();
create table contract (id int primary key, body text);
create table contract_log (contract_id int references contract, body text, at timestamptz default now());
create function log_contract() returns trigger language plpgsql as $$
begin
  insert into contract_log (contract_id, body) values (new.id, new.body);
  return null;
end $$;
-- = defer: writes-other-table
-- Because: the log's foreign key stops the DELETE of what was ever logged; when the rows come no more, contracts can go.
create trigger log_contract after insert or update on contract for each row execute function log_contract();
create table memo (id int primary key, body text);
create table memo_log (memo_id int references memo on delete cascade, body text, at timestamptz default now());
create function log_memo() returns trigger language plpgsql as $$
begin
  insert into memo_log (memo_id, body) values (new.id, new.body);
  return null;
end $$;
-- = retire: appends-to-log
-- Because: ON DELETE CASCADE stops nobody, and the row's own key cannot be missing.
create trigger log_memo after insert or update on memo for each row execute function log_memo();

-- Readers of the log that hide. --------------------------------------------------------------------------------------------
create table badge (id int primary key, who text);
create table badge_log (who text, at timestamptz default now());
create view badge_today as select distinct who from badge_log where at::date = current_date;
create table room (id int primary key, who text);
alter table room enable row level security;
create policy only_with_badge on room using (exists (select from badge_today b where b.who = room.who));
create function log_badge() returns trigger language plpgsql as $$
begin
  insert into badge_log (who) values (new.who);
  return null;
end $$;
-- = keep: feeds-a-policy
-- Because: a policy asks a view, and the view asks the log.
create trigger log_badge after insert on badge for each row execute function log_badge();

create table consent (id int primary key, who text);
create table consent_log (who text, at timestamptz default now());
create function consented(p text) returns boolean language sql stable as $$ select exists (select from consent_log c where c.who = p) $$;
create function may_mail(p text) returns boolean language plpgsql stable as $$ begin return consented(p) and p is not null; end $$;
create table mailing (id int primary key, who text);
alter table mailing enable row level security;
create policy with_consent on mailing for insert with check (may_mail(who));
create function log_consent() returns trigger language plpgsql as $$
begin
  insert into consent_log (who) values (new.who);
  return null;
end $$;
-- = keep: feeds-a-policy
-- Because: through two functions the policy's WITH CHECK looks into the log.
create trigger log_consent after insert on consent for each row execute function log_consent();

create table opening (id int primary key, shop int);
create table opening_log (shop int, at timestamptz default now());
create table delivery (id int primary key, shop int);
create rule only_when_open as on insert to delivery
  where not exists (select from opening_log o where o.shop = new.shop) do instead nothing;
create function log_opening() returns trigger language plpgsql as $$
begin
  insert into opening_log (shop) values (new.shop);
  return null;
end $$;
-- = keep
-- Because: a rewrite rule throws deliveries away unless the log has an entry.
create trigger log_opening after insert on opening for each row execute function log_opening();

create table edit (id int primary key, doc int, revision int);
create table edit_log (doc int, at timestamptz default now());
create function a_log_edit() returns trigger language plpgsql as $$
begin
  insert into edit_log (doc) values (new.doc);
  return new;
end $$;
-- = keep: feeds-a-keeper
-- Because: b_number_edit, the next trigger of the same INSERT, counts the log for the revision.
create trigger a_log_edit before insert on edit for each row execute function a_log_edit();
create function b_number_edit() returns trigger language plpgsql as $$
begin
  select count(*) into new.revision from edit_log l where l.doc = new.doc;
  return new;
end $$;
-- = keep: changes-new
create trigger b_number_edit before insert on edit for each row execute function b_number_edit();

create table hook (id int primary key, key text);
create table hook_log (key text, at timestamptz default now());
create function log_hook_once() returns trigger language plpgsql as $$
begin
  if exists (select from hook_log h where h.key = new.key) then
    return null;
  end if;
  insert into hook_log (key) values (new.key);
  return new;
end $$;
-- = keep: cancels-row
-- Because: what was logged before is not written again.
create trigger log_hook_once before insert on hook for each row execute function log_hook_once();

-- Effects in every corner. ---------------------------------------------------------------------------------------------------
create function counts_in_raise() returns trigger language plpgsql as $$
begin
  raise notice 'counted: %', note_usage(new.kind);
  insert into thing_log (thing_id, op) values (new.id, tg_op);
  return null;
end $$;
-- = defer: writes-other-table
-- Because: the argument of a NOTICE counts.
create trigger counts_in_raise after insert on thing for each row execute function counts_in_raise();
create function counts_in_if() returns trigger language plpgsql as $$
begin
  if note_usage(new.kind) then
    insert into thing_log (thing_id, op) values (new.id, tg_op);
  end if;
  return null;
end $$;
-- = defer: writes-other-table
create trigger counts_in_if after insert on thing for each row execute function counts_in_if();
create function bump(k text) returns int language plpgsql as $$
begin
  update usage set n = n + 1 where kind = k;
  return 3;
end $$;
create function counts_in_loop() returns trigger language plpgsql as $$
begin
  for i in 1 .. bump(new.kind) loop
    insert into thing_log (thing_id, op) values (new.id, i::text);
  end loop;
  return null;
end $$;
-- = defer: writes-other-table
create trigger counts_in_loop after insert on thing for each row execute function counts_in_loop();
create function counts_in_exit() returns trigger language plpgsql as $$
begin
  loop
    exit when note_usage(new.kind);
  end loop;
  insert into thing_log (thing_id, op) values (new.id, tg_op);
  return null;
end $$;
-- = defer: writes-other-table
create trigger counts_in_exit after update on thing for each row execute function counts_in_exit();
create function counts_in_return() returns trigger language plpgsql as $$
begin
  insert into thing_log (thing_id, op) values (new.id, tg_op);
  return case when note_usage(new.kind) then new else old end;
end $$;
-- = defer: writes-other-table
-- Because: AFTER, so that what it returns does not matter, but what it computes for it does.
create trigger counts_in_return after update on thing for each row execute function counts_in_return();
create function counts_in_using() returns trigger language plpgsql as $$
begin
  execute 'insert into thing_log (thing_id, op) values ($1, $2)' using new.id, note_usage(new.kind)::text;
  return null;
end $$;
-- = defer: writes-other-table
create trigger counts_in_using after insert on thing for each row execute function counts_in_using();
create function counts_in_returning() returns trigger language plpgsql as $$
declare
  ok boolean;
begin
  insert into thing_log (thing_id, op) values (new.id, tg_op) returning note_usage(op) into ok;
  return null;
end $$;
-- = defer: writes-other-table
create trigger counts_in_returning after insert on thing for each row execute function counts_in_returning();
create function counts_in_order() returns trigger language plpgsql as $$
begin
  insert into thing_log (thing_id, op) select t.id, tg_op from thing t where t.id = new.id order by note_usage(t.kind);
  return null;
end $$;
-- = defer: writes-other-table
create trigger counts_in_order after insert on thing for each row execute function counts_in_order();
create function counted_rows(k text) returns table (what text) language plpgsql as $$
begin
  update usage set n = n + 1 where kind = k;
  return query select 'counted';
end $$;
create function counts_in_from() returns trigger language plpgsql as $$
begin
  insert into thing_log (thing_id, op) select new.id, c.what from counted_rows(new.kind) c;
  return null;
end $$;
-- = defer: writes-other-table
create trigger counts_in_from after insert on thing for each row execute function counts_in_from();
create function log_with_default(what text, counted boolean default note_usage('default')) returns void language plpgsql as $$
begin
  insert into thing_log (op) values (what);
end $$;
create function counts_in_parameter_default() returns trigger language plpgsql as $$
begin
  perform log_with_default(tg_op);
  return null;
end $$;
-- = defer: writes-other-table
-- Because: the default of a parameter that is not given counts.
create trigger counts_in_parameter_default after insert on thing for each row execute function counts_in_parameter_default();
create function counts_in_cursor() returns trigger language plpgsql as $$
declare
  c cursor (k text) for select note_usage(k) as ok;
  r record;
begin
  open c (new.kind);
  fetch c into r;
  close c;
  insert into thing_log (thing_id, op) values (new.id, r.ok::text);
  return null;
end $$;
-- = defer: writes-other-table
create trigger counts_in_cursor after insert on thing for each row execute function counts_in_cursor();
create function counts_in_handler() returns trigger language plpgsql as $$
begin
  insert into thing_log (thing_id, op) values (new.id, tg_op);
  return null;
exception when others then
  update usage set n = n + 1 where kind = 'lost';
  return null;
end $$;
-- = defer: writes-other-table
-- Because: what could not be logged is counted.
create trigger counts_in_handler after insert on thing for each row execute function counts_in_handler();

-- Names that mean something else. --------------------------------------------------------------------------------------------
create schema strict;
create schema lax;
create function strict.log_it(what text) returns void language plpgsql as $$
begin
  if what is null then
    raise exception 'nothing to log';
  end if;
  insert into public.thing_log (op) values (what);
end $$;
create function lax.log_it(what text) returns void language plpgsql as $$
begin
  insert into public.thing_log (op) values (what);
end $$;
create function strict.calls() returns trigger language plpgsql set search_path = strict, public as $$
begin
  perform log_it(new.kind);
  return null;
end $$;
create function lax.calls() returns trigger language plpgsql set search_path = lax, public as $$
begin
  perform log_it(new.kind);
  return null;
end $$;
-- = keep: raises
create trigger calls_strict after insert on thing for each row execute function strict.calls();
-- = retire: appends-to-log
create trigger calls_lax after insert on thing for each row execute function lax.calls();
create function check_code(t thing) returns void language plpgsql as $$
begin
  if t.code is null then
    raise exception 'a code, please';
  end if;
end $$;
create function note_code(t thing) returns void language plpgsql as $$
begin
  insert into thing_log (thing_id, op) values (t.id, t.code);
end $$;
create function dispatch() returns trigger language plpgsql as $$
begin
  execute format('select %I($1)', tg_argv[0]) using new;
  return null;
end $$;
-- = keep: raises
-- Because: the argument names the function that is called, and this one refuses.
create trigger dispatch_check after insert on thing for each row execute function dispatch('check_code');
-- = retire: appends-to-log
create trigger dispatch_note after insert on thing for each row execute function dispatch('note_code');

-- Rows that change in unusual ways. --------------------------------------------------------------------------------------------
create function by_hstore() returns trigger language plpgsql as $$
begin
  insert into thing_log (thing_id, op) values (new.id, tg_op);
  return new #= hstore(tg_argv[0], now()::text);
end $$;
-- = keep: returns-another-row
create trigger by_hstore before update on thing for each row execute function by_hstore('changed_at');
create function by_diagnostics() returns trigger language plpgsql as $$
begin
  insert into thing_log (thing_id, op) select t.id, tg_op from thing t where t.kind = new.kind;
  get diagnostics new.n = row_count;
  return new;
end $$;
-- = keep: changes-new
create trigger by_diagnostics before insert on thing for each row execute function by_diagnostics();
create function by_fetch() returns trigger language plpgsql as $$
declare
  c cursor for select count(*) from thing;
begin
  open c;
  fetch c into new.n;
  close c;
  return new;
end $$;
-- = keep: changes-new
create trigger by_fetch before insert on thing for each row execute function by_fetch();
create function by_dynamic_into() returns trigger language plpgsql as $$
begin
  execute 'select count(*) from ' || quote_ident(tg_table_name) into new.n;
  insert into thing_log (thing_id, op) values (new.id, tg_op);
  return new;
end $$;
-- = keep: changes-new
create trigger by_dynamic_into before insert on thing for each row execute function by_dynamic_into();
create function improve(t thing) returns thing language plpgsql as $$
begin
  t.code := upper(t.code);
  return t;
end $$;
create function by_function() returns trigger language plpgsql as $$
begin
  return improve(new);
end $$;
-- = keep: returns-another-row
create trigger by_function before insert on thing for each row execute function by_function();
create function by_returning() returns trigger language plpgsql as $$
begin
  update usage set n = n + 1 where kind = new.kind returning n into new.n;
  return new;
end $$;
-- = keep: changes-new
create trigger by_returning before insert on thing for each row execute function by_returning();
create function by_conditional_null() returns trigger language plpgsql as $$
declare
  result thing := new;
begin
  insert into thing_log (thing_id, op) values (new.id, tg_op);
  if new.qty < 0 then
    result := null;
  end if;
  return result;
end $$;
-- = keep: cancels-row|returns-another-row
-- Because: the row that it returns may be NULL.
create trigger by_conditional_null before insert on thing for each row execute function by_conditional_null();

-- Nothing at all. ------------------------------------------------------------------------------------------------------------
create function only_computes() returns trigger language plpgsql as $$
declare
  total int := 0;
begin
  for i in 1 .. coalesce(array_length(new.tags, 1), 0) loop
    total := total + length(new.tags[i]);
  end loop;
  return new;
end $$;
-- = retire: has-no-effect
-- Because: it adds up, and forgets.
create trigger only_computes before update on thing for each row execute function only_computes();
create function never() returns trigger language plpgsql as $$
begin
  if tg_op = 'DELETE' then
    raise exception 'no deleting';
  end if;
  insert into thing_log (thing_id, op) values (new.id, tg_op);
  return new;
end $$;
-- = retire: appends-to-log
create trigger never_for_deletes after insert or update on thing for each row execute function never();

-- A row is NOT NULL when every column is (found by a mutated body). ---------------------------------------------------------
create table form (id int primary key, answer text);
create table form_log (id int, answer text);
create function log_whole_form() returns trigger language plpgsql as $$
begin
  if new is not null then
    insert into form_log (id, answer) values (new.id, new.answer);
    return new;
  else
    raise exception 'incomplete';
  end if;
end $$;
-- = keep: raises
-- Because: NEW is there, and yet NEW IS NOT NULL is false where an answer is missing: such a row is refused.
create trigger log_whole_form after insert or update on form for each row execute function log_whole_form();
create function log_form_or_old() returns trigger language plpgsql as $$
begin
  if not (old is not null) then
    insert into form_log (id, answer) values (new.id, new.answer);
    return new;
  end if;
  raise exception 'forms are written once';
end $$;
-- = retire: appends-to-log
-- Because: in an INSERT there is no OLD, and so it is not NOT NULL: the refusal is for UPDATEs, for which it is not made.
create trigger log_form_or_old after insert on form for each row execute function log_form_or_old();
