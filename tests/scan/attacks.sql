-- Ways to hide what a trigger does, or what hangs on it, each in a database of its own. The trigger is called t.
-- The line before each names it, and the verdicts that are no mistake (test_attacks.py).

-- Constraints of what is written, which refuse the writer.

--- once a day date = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create table vote_log (voter int, day date, unique(voter,day));
create function f() returns trigger language plpgsql as $$ begin insert into vote_log(voter,day) values (new.owner, current_date); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- unique with generated column = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create table vote_log (voter text, lv text generated always as (lower(voter)) stored unique, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into vote_log(voter) values (new.email); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- unique by variable = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create table email_log (email text unique, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ declare v text; begin v := lower(new.email); insert into email_log(email) values (v); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- unique by transition = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create table email_log (email text unique, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into email_log(email) select email from nn; return null; end $$;
create trigger t after insert on o referencing new table as nn for each statement execute function f();

--- unique coalesce uuid = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create table code_log (code text unique, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into code_log(code) values (coalesce(new.note, gen_random_uuid()::text)); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- pk tombstone delete = keep|review
create table account (name text primary key);
create table deleted_log (name text primary key, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into deleted_log(name) values (old.name); return null; end $$;
create trigger t after delete on account for each row execute function f();

--- check allows no delete = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create table op_log (op text check (op in ('INSERT','UPDATE')), at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into op_log(op) values (tg_op); return null; end $$;
create trigger t after insert or update or delete on o for each row execute function f();

--- check default current_user = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create table op_log (op text, actor text default current_user check (actor <> 'intern'), at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into op_log(op) values (tg_op); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- check whole row = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create table op_log (op text, row_id int, at timestamptz default now());
create function okr(r op_log) returns bool language sql as 'select r.row_id > 0';
alter table op_log add check (okr(op_log));
create function f() returns trigger language plpgsql as $$ begin insert into op_log(op,row_id) values (tg_op,new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- check on generated col = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create table op_log (op text, qty int, g int generated always as (qty * 2) stored check (g > 0), at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into op_log(op,qty) values (tg_op,new.qty); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- not null default auth.uid = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create schema auth;
create function auth.uid() returns uuid language sql stable as $$ select nullif(current_setting('request.jwt.claim.sub', true), '')::uuid $$;
create table op_log (op text, uid uuid not null default auth.uid(), at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into op_log(op) values (tg_op); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- not null var auth.uid = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create schema auth;
create function auth.uid() returns uuid language sql stable as $$ select nullif(current_setting('request.jwt.claim.sub', true), '')::uuid $$;
create table op_log (op text, uid uuid not null, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ declare v uuid; begin v := auth.uid(); insert into op_log(op,uid) values (tg_op,v); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- not null omitted = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create table op_log (op text, uid int not null, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into op_log(op) values (tg_op); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- not null made of itself = keep|review
create table o (id int primary key);
create table a_log (n int not null, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ declare v int; begin v := v + 1; insert into a_log (n) values (v); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- not null concat = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create table op_log (op text not null, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into op_log(op) values (tg_op || new.note); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- not null old in insert = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create table op_log (op text not null, was int not null, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into op_log(op, was) values (tg_op, old.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- target partial unique literal = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create table shift (id int primary key, worker int, status text);
create unique index on shift(worker) where status = 'open';
create function f() returns trigger language plpgsql as $$ begin update shift set status = 'open' where id = new.owner; return new; end $$;
create trigger t after insert on o for each row execute function f();

--- target check literal status = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create table inv (id int primary key, status text, approved bool, check (status <> 'paid' or approved));
create function f() returns trigger language plpgsql as $$ begin update inv set status = 'paid' where id = new.owner; return new; end $$;
create trigger t after insert on o for each row execute function f();

--- target fk by variable = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create table owners (id int primary key);
create table asset (id int primary key, owner int references owners);
create function f() returns trigger language plpgsql as $$ declare v int; begin v := new.owner; update asset set owner = v where id = new.qty; return new; end $$;
create trigger t after insert on o for each row execute function f();

--- target matview unique refresh = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create materialized view mv as select email from o;
create unique index on mv(email);
create function f() returns trigger language plpgsql as $$ begin refresh materialized view mv; return new; end $$;
create trigger t after insert on o for each row execute function f();

--- policy on log blocks = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
alter table audit_log enable row level security;
alter table audit_log force row level security;
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- constraints that hold = retire
create table account (id bigint generated always as identity primary key, name text not null, code text not null check (code <> ''));
create table account_log (id bigserial primary key, op text not null check (op in ('INSERT', 'UPDATE', 'DELETE')), kind char(1) not null check (kind in ('I', 'U', 'D')), account bigint not null, name text not null, code text check (code <> ''), actor text not null default current_user, at timestamptz not null default now(), row_data jsonb not null, unique (account, at));
create function f() returns trigger language plpgsql as $$ declare r account; begin if tg_op = 'DELETE' then r := old; else r := new; end if; insert into account_log (op, kind, account, name, code, row_data) values (tg_op, left(tg_op, 1), coalesce(new.id, old.id), r.name, r.code, to_jsonb(r)); return null; end $$;
create trigger t after insert or update or delete on account for each row execute function f();

--- target constraints that hold = defer
create table account (id bigserial primary key, parent bigint not null references account, amount numeric not null);
create table total (id bigint primary key, sum numeric not null default 0, state text not null check (state in ('new', 'used')), first bigint references account);
create function f() returns trigger language plpgsql as $$ declare v numeric := 0; begin v := v + new.amount; insert into total as x (id, sum, state, first) values (new.parent, v, 'new', new.parent) on conflict (id) do update set sum = x.sum + excluded.sum; return null; end $$;
create trigger t after insert on account for each row execute function f();

--- default effect plpgsql = defer|keep|review
create table o (id int primary key, qty int);
create table counters (n int);
create function bump() returns timestamptz language plpgsql as $$ begin update counters set n = n + 1; return now(); end $$;
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default bump());
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, row_id) values (tg_op, new.id); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- default effect stable lie = defer|keep|review
create table o (id int primary key, qty int);
create table counters (n int);
create function bump() returns timestamptz language plpgsql as $$ begin update counters set n = n + 1; return now(); end $$;
alter function bump() stable;
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default bump());
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, row_id) values (tg_op, new.id); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- default notify = defer|keep|review
create table o (id int primary key, qty int);
create table audit_log (id bigserial primary key, op text, row_id int, z text default set_config('app.audited', 'yes', false));
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, row_id) values (tg_op, new.id); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- default raises = keep
create table o (id int primary key, qty int);
create function actor() returns text language plpgsql as $$ begin if current_setting('app.user', true) is null then raise exception 'no user'; end if; return current_setting('app.user'); end $$;
create table audit_log (id bigserial primary key, op text, row_id int, actor text default actor());
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, row_id) values (tg_op, new.id); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- check effect = keep
create table o (id int primary key, qty int);
create function ok(q int) returns boolean language plpgsql as $$ begin if q < 0 then raise exception 'no'; end if; return true; end $$;
create table audit_log (id bigserial primary key, op text, qty int check (ok(qty)));
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- domain check effect = keep
create table o (id int primary key, qty int);
create function ok(q int) returns boolean language plpgsql as $$ begin if q < 0 then raise exception 'no'; end if; return true; end $$;
create domain good as int check (ok(value));
create table audit_log (id bigserial primary key, op text, qty good);
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- operator effect = keep|defer|review
create table o (id int primary key, qty int);
create table stock (id int, n int);
create function take(a int, b int) returns boolean language plpgsql as $$ begin update stock set n = n - b where id = a; return true; end $$;
create operator ->> (leftarg = int, rightarg = int, function = take);
create table audit_log (id bigserial primary key, op text, ok boolean);
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, ok) values (tg_op, new.id ->> new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- cast effect = keep|defer|review
create type money_t as (v int);
create table o (id int primary key, qty money_t);
create table stock (id int, n int);
create function to_t(a money_t) returns text language plpgsql as $$ begin update stock set n = n - 1; return a.v; end $$;
create cast (money_t as text) with function to_t(money_t) as assignment;
create table audit_log (id bigserial primary key, op text, qty text);
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- default argument effect = keep|defer|review
create table o (id int primary key, qty int);
create table stock (id int, n int);
create function take() returns int language plpgsql as $$ begin update stock set n = n - 1; return 1; end $$;
create table audit_log (id bigserial primary key, op text, qty int);
create function put(op text, q int default take()) returns void language sql as $$ insert into audit_log (op, qty) values (op, q) $$;
create function f() returns trigger language plpgsql as $$ begin perform put(tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- aggregate effect = keep|defer|review
create table o (id int primary key, qty int);
create table stock (id int, n int);
create function step(s int, v int) returns int language plpgsql as $$ begin update stock set n = n - v; return 1; end $$;
create aggregate drain(int) (sfunc = step, stype = int, initcond = '0');
create table audit_log (id bigserial primary key, op text, qty int);
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, qty) select tg_op, drain(new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- view effect = keep|defer|review
create table o (id int primary key, qty int);
create table stock (id int, n int);
create function step(v int) returns int language plpgsql as $$ begin update stock set n = n - v; return 1; end $$;
create view w as select step(1) as s;
create table audit_log (id bigserial primary key, op text, qty int);
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, qty) select tg_op, s from w; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- attribute notation = keep|defer|review
create table o (id int primary key, qty int);
create table stock (id int, n int);
create function drained(r o) returns int language plpgsql as $$ begin update stock set n = n - r.qty; return 1; end $$;
create table audit_log (id bigserial primary key, op text, qty int);
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, qty) select tg_op, x.drained from o x where x.id = new.id; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- attribute notation row = keep|defer|review
create table o (id int primary key, qty int);
create table stock (id int, n int);
create function drained(r o) returns int language plpgsql as $$ begin update stock set n = n - r.qty; return 1; end $$;
create table audit_log (id bigserial primary key, op text, qty int);
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, qty) values (tg_op, (new).drained); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- shadowed variable = keep|review
create table o (id int primary key, qty int);
create table audit_log (id bigserial primary key, op text, qty int);
create table stock (id int, n int);
create function f() returns trigger language plpgsql as $$
declare q text := 'update stock set n = n - 1';
begin
  declare q text := 'select 1'; begin null; end;
  execute q;
  insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- call sets variable = keep|review
create table o (id int primary key, qty int);
create table audit_log (id bigserial primary key, op text, qty int);
create table stock (id int, n int);
create procedure p(inout q text) language plpgsql as $$ begin q := 'update stock set n = 0'; end $$;
create function f() returns trigger language plpgsql as $$
declare q text := 'select 1';
begin
  call p(q);
  execute q;
  insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- regclass guard = keep
create table o (id int primary key, qty int);
create table audit_log (id bigserial primary key, op text, qty int);
create function f() returns trigger language plpgsql as $$
begin
  if tg_relid = 'o'::regclass and new.qty < 0 then raise exception 'no'; end if;
  insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- char guard = keep
create table o (id int primary key, qty int);
create table audit_log (id bigserial primary key, op text, qty int);
create function f() returns trigger language plpgsql as $$
begin
  if tg_op::char(1) = 'I' and new.qty < 0 then raise exception 'no'; end if;
  insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- char variable guard = keep
create table o (id int primary key, qty int);
create table audit_log (id bigserial primary key, op text, qty int);
create function f() returns trigger language plpgsql as $$
declare op "char" := tg_op; c char(1) := tg_op;
begin
  if op = 'I' and new.qty < 0 then raise exception 'no'; end if;
  insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- citext variable guard = keep
create extension citext;
create table o (id int primary key, qty int);
create table audit_log (id bigserial primary key, op text, qty int);
create function f() returns trigger language plpgsql as $$
declare op citext := tg_op;
begin
  if op = 'insert' and new.qty < 0 then raise exception 'no'; end if;
  insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- citext argument guard = keep
create extension citext;
create table o (id int primary key, qty int);
create table audit_log (id bigserial primary key, op text, qty int);
create function g(op citext, q int) returns void language plpgsql as $$ begin if op = 'insert' and q < 0 then raise exception 'no'; end if; end $$;
create function f() returns trigger language plpgsql as $$
begin
  perform g(tg_op::citext, new.qty);
  insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- bool guard = keep
create table o (id int primary key, qty int);
create table audit_log (id bigserial primary key, op text, qty int);
create function f() returns trigger language plpgsql as $$
begin
  if tg_argv[0]::bool = true and new.qty < 0 then raise exception 'no'; end if;
  insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f('t');

--- number guard = keep
create table o (id int primary key, qty int);
create table audit_log (id bigserial primary key, op text, qty int);
create function f() returns trigger language plpgsql as $$
begin
  if tg_argv[0]::int = 1 and new.qty < 0 then raise exception 'no'; end if;
  insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f('01');

--- not null variable = keep
create table o (id int primary key, qty int);
create table audit_log (id bigserial primary key, op text, qty int);
create function f() returns trigger language plpgsql as $$
declare q int not null := new.qty;
begin
  insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- domain variable = keep
create table o (id int primary key, qty int);
create domain positive as int check (value > 0);
create table audit_log (id bigserial primary key, op text, qty int);
create function f() returns trigger language plpgsql as $$
declare q positive;
begin
  q := new.qty;
  insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- domain cast = keep
create table o (id int primary key, qty int);
create domain positive as int check (value > 0);
create table audit_log (id bigserial primary key, op text, qty int);
create function f() returns trigger language plpgsql as $$
begin
  perform new.qty::positive;
  insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- division = keep
create table o (id int primary key, qty int);
create table audit_log (id bigserial primary key, op text, qty int);
create function f() returns trigger language plpgsql as $$
begin
  perform 1 / (case when new.qty > 0 then 1 else 0 end);
  insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- only division = keep|review
create table o (id int primary key, qty int);
create function f() returns trigger language plpgsql as $$
declare x int;
begin
  x := 1 / new.qty;
  return null; end $$;
create trigger t after insert on o for each row execute function f();

--- division in sql function = keep
create table o (id int primary key, qty int);
create table audit_log (id bigserial primary key, op text, qty int);
create function chk(q int) returns int language sql as $$ select 1 / (q > 0)::int $$;
create function f() returns trigger language plpgsql as $$
begin
  perform chk(new.qty);
  insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- perform cast json = keep
create table o (id int primary key, qty text);
create table audit_log (id bigserial primary key, op text, qty text);
create function f() returns trigger language plpgsql as $$
begin
  perform new.qty::json;
  insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- nextval effect = defer|review|keep
create table o (id int primary key, qty int);
create sequence cache_version;
create function f() returns trigger language plpgsql as $$
begin perform nextval('cache_version'); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- nextval effect and log = defer|review|keep
create table o (id int primary key, qty int);
create sequence cache_version;
create table audit_log (id bigserial primary key, op text, qty int);
create function f() returns trigger language plpgsql as $$
begin perform nextval('cache_version'); insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- sleep = review
create table o (id int primary key, qty int);
create table audit_log (id bigserial primary key, op text, qty int);
create function f() returns trigger language plpgsql as $$
begin perform pg_sleep(0.1); insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- log unique version = keep
create table o (id int primary key, version int, qty int);
create table o_audit (id bigserial primary key, o_id int, version int, op text, unique (o_id, version));
create function f() returns trigger language plpgsql as $$
begin insert into o_audit (o_id, version, op) values (new.id, new.version, tg_op); return null; end $$;
create trigger t after insert or update on o for each row execute function f();

--- log check = keep|review
create table o (id int primary key, version int, qty int);
create table o_audit (id bigserial primary key, o_id int, qty int check (qty > 0), op text);
create function f() returns trigger language plpgsql as $$
begin insert into o_audit (o_id, qty, op) values (new.id, new.qty, tg_op); return null; end $$;
create trigger t after insert or update on o for each row execute function f();

--- own http name = keep
create table o (id int primary key, qty int);
create table audit_log (id bigserial primary key, op text, qty int);
create function http_post(q int) returns void language plpgsql as $$ begin if q < 0 then raise exception 'no'; end if; end $$;
create function f() returns trigger language plpgsql as $$
begin perform http_post(new.qty); insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- unread trigger on target = review|keep
create table o (id int primary key, qty int);
create table other (op text, qty int);
create function g() returns trigger language plpgsql as $$ begin execute current_setting('app.sql'); return new; end $$;
create trigger g before insert on other for each row execute function g();
create function f() returns trigger language plpgsql as $$
begin insert into other (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- rule on target = review|keep
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create table stock (qty int check (qty > 0));
create rule r as on insert to audit_log do also insert into stock values (new.qty);
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- inherited child updates parent = keep
create table base (id int primary key, n int);
create table o (qty int) inherits (base);
create function f() returns trigger language plpgsql as $$
begin update base set n = coalesce(n, 0) + 1 where id = new.id; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- inherited child refuses = keep
create table o (id int primary key, n int);
create table parent (id int, n int);
create table child () inherits (parent);
create function g() returns trigger language plpgsql as $$ begin if new.n > 5 then raise exception 'no'; end if; return new; end $$;
create trigger g before update on child for each row execute function g();
create function f() returns trigger language plpgsql as $$
begin update parent set n = coalesce(n, 0) + 1 where id = new.id; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- fk cascade refuses = keep
create table o (id int primary key, n int);
create table parent (id int primary key);
create table child (pid int references parent on delete cascade, locked boolean);
create function g() returns trigger language plpgsql as $$ begin if old.locked then raise exception 'no'; end if; return old; end $$;
create trigger g before delete on child for each row execute function g();
create function f() returns trigger language plpgsql as $$
begin delete from parent where id = old.n; return null; end $$;
create trigger t after delete on o for each row execute function f();

--- fk of target refuses = keep
create table o (id int primary key, customer text);
create table customers (code text primary key);
create table stats (customer text references customers, n int);
create function f() returns trigger language plpgsql as $$
begin insert into stats values (new.customer, 1); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- replica only = review|keep
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();
alter table o enable replica trigger t;

--- read through function of function = defer|keep|review
create table o (id int primary key, qty int);
create table audit_log (op text, qty int, at timestamptz default now());
create function lately() returns bigint language sql stable as $$ select count(*) from audit_log where at > now() - interval '1 minute' $$;
create function rate_limited() returns void language plpgsql as $$ begin if lately() > 5 then raise exception 'slow'; end if; end $$;
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- read through view by function = defer|keep|review
create table o (id int primary key, qty int);
create table audit_log (op text, qty int, at timestamptz default now());
create view recent as select * from audit_log where at > now() - interval '1 minute';
create function rate_limited() returns void language plpgsql as $$ begin if (select count(*) from recent) > 5 then raise exception 'slow'; end if; end $$;
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- read by check constraint = defer|keep|review
create table o (id int primary key, qty int);
create table audit_log (op text, qty int, at timestamptz default now());
create function audited(q int) returns boolean language sql stable as $$ select exists (select from audit_log where qty = q) $$;
create table pay (q int check (audited(q)));
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- cte name is table = keep
create table o (id int primary key, qty int);
create table stock (id int, n int);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$
begin
  insert into audit_log (op, qty) values (tg_op, new.qty);
  with stock as (update stock set n = n - 1 where id = new.id returning n)
  insert into audit_log (op, qty) select 'stock', n from stock;
  if (select n from stock where id = new.id) < 0 then raise exception 'no'; end if;
  return null; end $$;
create trigger t after insert on o for each row execute function f();

--- select into new = keep
create table o (id int primary key, qty int);
create table src (id int, qty int);
create function f() returns trigger language plpgsql as $$
begin
  select * into new from src where id = new.id;
  return new; end $$;
create trigger t before insert on o for each row execute function f();

--- for new in = keep
create table o (id int primary key, qty int);
create function f() returns trigger language plpgsql as $$
begin
  for new in select id, qty + 1 from o where id = old.id loop null; end loop;
  return new; end $$;
create trigger t before update on o for each row execute function f();

--- for field = keep
create table o (id int primary key, qty int);
create function f() returns trigger language plpgsql as $$
begin
  for new.qty in select 5 loop null; end loop;
  return new; end $$;
create trigger t before insert on o for each row execute function f();

--- foreach field = keep
create table o (id int primary key, qty int);
create function f() returns trigger language plpgsql as $$
begin
  foreach new.qty in array array[1,2] loop null; end loop;
  return new; end $$;
create trigger t before insert on o for each row execute function f();

--- path before catalog = keep
create schema app;
create table o (id int primary key, qty int, email text);
create table audit_log (op text, qty int);
create function app.lower(q text) returns text language plpgsql as $$ begin if q = '' then raise exception 'no'; end if; return q; end $$;
create function f() returns trigger language plpgsql set search_path = app, pg_catalog, public as $$
begin insert into audit_log (op, qty) values (lower(new.email), new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- copy program = review
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); copy audit_log to program 'cat'; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- perform read guarded = review|keep
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create table admins (id int);
create function f() returns trigger language plpgsql as $$
begin perform 1 from admins; insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- returned log it = retire
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function logit(r o, op text) returns o language plpgsql as $$ begin insert into audit_log (op, qty) values (op, r.qty); return r; end $$;
create function f() returns trigger language plpgsql as $$
begin return logit(new, tg_op); end $$;
create trigger t after insert on o for each row execute function f();

--- policy with check = keep|review|defer
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create table stock (n int);
create function ok(q int) returns boolean language plpgsql as $$ begin update stock set n = n - 1; return true; end $$;
alter table audit_log enable row level security;
create policy p on audit_log for insert with check (ok(qty));
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- index expression effect = keep
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create table stock (n int);
create function ok(q int) returns int immutable language plpgsql as $$ begin if q < 0 then raise exception 'no'; end if; return q; end $$;
create index on audit_log (ok(qty));
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- generated effect = keep
create table o (id int primary key, qty int);
create function ok(q int) returns int immutable language plpgsql as $$ begin if q < 0 then raise exception 'no'; end if; return q; end $$;
create table audit_log (op text, qty int, q2 int generated always as (ok(qty)) stored);
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- log fk enforces = retire|keep
create table users (id int primary key);
create table o (id int primary key, user_id int);
create table audit_log (op text, user_id int references users);
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, user_id) values (tg_op, new.user_id); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- partition missing = retire|defer|keep|review
create table o (id int primary key, d date);
create table audit_log (op text, d date) partition by range (d);
create table audit_log_1 partition of audit_log for values from ('2020-01-01') to ('2040-01-01');
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, d) values (tg_op, new.d); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- foreign log = defer|review
create extension postgres_fdw;
create server s foreign data wrapper postgres_fdw;
create foreign table audit_log (op text, qty int) server s;
create table o (id int primary key, qty int);
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- unlogged log = retire|defer
create unlogged table audit_log (op text, qty int);
create table o (id int primary key, qty int);
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- temp log = review
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$
begin create temp table if not exists audit_log (op text, qty int); insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- setting read by policy = keep
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
alter table o enable row level security;
create policy p on o using (current_setting('app.last', true) = '1');
create function f() returns trigger language plpgsql as $$
begin perform set_config('app.last', new.id::text, false); insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- return setof effect = defer
create table o (id int primary key, qty int);
create table stock (id int, n int);
create table audit_log (op text, qty int);
create function many(q int) returns setof int language plpgsql as $$ begin return query update stock set n = n - q returning n; end $$;
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) select tg_op, m from many(new.qty) m; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- cursor effect = defer
create table o (id int primary key, qty int);
create table stock (id int, n int);
create table audit_log (op text, qty int);
create function many(q int) returns setof int language plpgsql as $$ begin return query update stock set n = n - q returning n; end $$;
create function f() returns trigger language plpgsql as $$
declare c cursor (z int) for select m from many(z) m; x int;
begin open c(new.qty); fetch c into x; close c; insert into audit_log (op, qty) values (tg_op, x); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- sql in variadic = defer
create table o (id int primary key, qty int);
create table stock (id int, n int);
create table audit_log (op text, qty int);
create function many(variadic q int[]) returns int language sql as $$ update stock set n = n - q[1] returning n $$;
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, many(new.id, new.qty)); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- ambiguous role path = review
create schema app;
create table o (id int primary key, qty int);
create table app.audit_log (op text, qty int check (qty > 0), total int);
create table audit_log (op text, qty int);
do $$ begin create role scan_writer; exception when duplicate_object then null; end $$;
do $$ begin execute format('alter role scan_writer in database %I set search_path = app, public', current_database()); end $$;
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- twins tenants = retire
create schema a; create schema b;
create table a.o (id int primary key, qty int); create table b.o (id int primary key, qty int);
create table a.audit_log (op text, qty int); create table b.audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on a.o for each row execute function f();
create trigger t2 after insert on b.o for each row execute function f();

--- own row reading default of other = keep
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function nxt() returns bigint language sql as $$ select count(*) from audit_log $$;
create table z (n bigint default nxt());
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- generated reader = keep
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function nxt(x int) returns bigint immutable language sql as $$ select count(*) from audit_log $$;
create table z (x int, n bigint generated always as (nxt(x)) stored);
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- partition key effect = keep|defer|review
create table o (id int primary key, qty int);
create function pk(q int) returns int immutable language plpgsql as $$ begin if q < 0 then raise exception 'no'; end if; return q; end $$;
create table audit_log (op text, qty int) partition by range (pk(qty));
create table audit_log_1 partition of audit_log default;
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- partition check = keep|defer|review
create table o (id int primary key, qty int);
create table audit_log (op text, qty int) partition by range (qty);
create table audit_log_1 partition of audit_log for values from (0) to (1000);
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- leaf check = keep
create table o (id int primary key, qty int);
create table audit_log (op text, qty int) partition by list (op);
create table audit_log_1 partition of audit_log default;
alter table audit_log_1 add check (qty > 0);
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- leaf trigger = keep|defer
create table o (id int primary key, qty int);
create table audit_log (op text, qty int) partition by list (op);
create table audit_log_1 partition of audit_log default;
create function g() returns trigger language plpgsql as $$ begin if new.qty < 0 then raise exception 'no'; end if; return new; end $$;
create trigger g before insert on audit_log_1 for each row execute function g();
create function f() returns trigger language plpgsql as $$
begin insert into audit_log (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- leaf default = keep|defer|review
create table o (id int primary key, qty int);
create table c (n int);
create function bump() returns text language plpgsql as $$ begin update c set n = n + 1; return 'x'; end $$;
create table audit_log (op text, qty int, z text) partition by list (op);
create table audit_log_1 partition of audit_log default;
alter table audit_log_1 alter z set default bump();
create function f() returns trigger language plpgsql as $$
begin insert into audit_log_1 (op, qty) values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- sql function composite field = keep|defer|review
create table o (id int primary key, qty int);
create table stock (id int, n int);
create table audit_log (op text, qty int);
create function drained(r o) returns int language plpgsql as $$ begin update stock set n = n - r.qty; return 1; end $$;
create function logit(p o) returns void language sql as $$ insert into audit_log (op, qty) values ('x', p.drained) $$;
create function f() returns trigger language plpgsql as $$ begin perform logit(new); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- rowtype param shadow new = keep|review|defer
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create table stock (n int);
create function chk(new o) returns void language plpgsql as $$ begin if new.qty < 0 then raise exception 'no'; end if; end $$;
create function f() returns trigger language plpgsql as $$ begin insert into audit_log values (tg_op, new.qty); perform chk(new); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- exec into then exec = review
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create table cfg (q text);
create function f() returns trigger language plpgsql as $$ declare q text := 'select 1'; begin execute 'select q from cfg' into q; execute q; insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- select func out param = review
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create table cfg (q text);
create function getq(out q text) language sql as $$ select q from cfg $$;
create function f() returns trigger language plpgsql as $$ declare q text := 'select 1'; begin select getq() into q; execute q; insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- foreach assign = review
create table o (id int primary key, qty int, qs text[]);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$ declare q text := 'select 1'; begin foreach q in array new.qs loop execute q; end loop; insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- loop carried = keep|review|defer
create table o (id int primary key, qty int, qs text[]);
create table audit_log (op text, qty int);
create table stock (n int);
create function f() returns trigger language plpgsql as $$ declare q text := 'select 1'; begin for i in 1..2 loop execute q; q := 'update stock set n = n - 1'; end loop; insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- handler assign = keep|review|defer
create table o (id int primary key, qty int, qs text[]);
create table audit_log (op text, qty int);
create table stock (n int);
create function f() returns trigger language plpgsql as $$ declare q text := 'select 1'; begin begin q := 'update stock set n = n - 1'; perform 1 / new.qty; q := 'select 1'; exception when others then null; end; execute q; insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- alias of variable = keep|review|defer
create table o (id int primary key, qty int, qs text[]);
create table audit_log (op text, qty int);
create table stock (n int);
create function f() returns trigger language plpgsql as $$ declare q text := 'select 1'; a alias for q; begin a := 'update stock set n = n - 1'; execute q; insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- label qualified = keep|review|defer
create table o (id int primary key, qty int, qs text[]);
create table audit_log (op text, qty int);
create table stock (n int);
create function f() returns trigger language plpgsql as $$ <<outerb>> declare q text := 'select 1'; begin outerb.q := 'update stock set n = n - 1'; execute q; insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- quoted variable = keep|review|defer
create table o (id int primary key, qty int, qs text[]);
create table audit_log (op text, qty int);
create table stock (n int);
create function f() returns trigger language plpgsql as $$ declare "Q" text := 'select 1'; q text := 'select 1'; begin "Q" := 'update stock set n = n - 1'; execute "Q"; insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- exec using into new = keep
create table o (id int primary key, qty int);
create function f() returns trigger language plpgsql as $$ begin execute 'select $1 + 1' into new.qty using new.qty; return new; end $$;
create trigger t before insert on o for each row execute function f();

--- hstore populate = keep
create table o (id int primary key, qty int);
create function f() returns trigger language plpgsql as $$ begin new := jsonb_populate_record(new, '{"qty": 1}'); return new; end $$;
create trigger t before insert on o for each row execute function f();

--- return populate = keep
create table o (id int primary key, qty int);
create function f() returns trigger language plpgsql as $$ begin return jsonb_populate_record(new, '{"qty": 1}'); end $$;
create trigger t before insert on o for each row execute function f();

--- return record changed = keep
create table o (id int primary key, qty int);
create function f() returns trigger language plpgsql as $$ declare r o; begin r := new; r.qty := 1; return r; end $$;
create trigger t before insert on o for each row execute function f();

--- return selected = keep
create table o (id int primary key, qty int);
create function f() returns trigger language plpgsql as $$ declare r o; begin r := new; select 1, 2 into r; return r; end $$;
create trigger t before insert on o for each row execute function f();

--- no return before = keep|review
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$ begin insert into audit_log values (tg_op, new.qty); if new.qty > 0 then return new; end if; end $$;
create trigger t before insert on o for each row execute function f();

--- raise named condition = keep
create table o (id int primary key, qty int);
create function f() returns trigger language plpgsql as $$ begin if new.qty > 1 then raise unique_violation using message = 'x'; end if; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- raise sqlstate = keep
create table o (id int primary key, qty int);
create function f() returns trigger language plpgsql as $$ begin if new.qty > 1 then raise sqlstate 'AW001'; end if; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- raise caught by other handler = keep
create table o (id int primary key, qty int);
create function f() returns trigger language plpgsql as $$ begin begin if new.qty > 1 then raise exception 'x' using errcode = 'unique_violation'; end if; exception when raise_exception then null; end; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- handler raises conditionally = retire
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$ begin begin insert into audit_log values (tg_op, new.qty); exception when others then if sqlstate = '23514' then raise; end if; end; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- nested function return null before = retire
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function g(q int) returns int language plpgsql as $$ begin return null; end $$;
create function f() returns trigger language plpgsql as $$ begin insert into audit_log values (tg_op, g(new.qty)); return new; end $$;
create trigger t before insert on o for each row execute function f();

--- lateral function = defer
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create table stock (n int);
create function g(q int) returns setof int language sql as $$ update stock set n = n - q returning n $$;
create function f() returns trigger language plpgsql as $$ begin insert into audit_log select tg_op, x.g from o y, lateral g(y.qty) x where y.id = new.id; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- rows from = defer
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create table stock (n int);
create function g(q int) returns setof int language sql as $$ update stock set n = n - q returning n $$;
create function f() returns trigger language plpgsql as $$ begin insert into audit_log select tg_op, a from rows from (g(new.qty), generate_series(1,2)) x(a, b); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- table inherits of log = retire|defer
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create table audit_log_old () inherits (audit_log);
create function f() returns trigger language plpgsql as $$ begin insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- log updated in statistics = defer
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$ begin insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();
insert into audit_log select 'x', g from generate_series(1, 100) g; update audit_log set qty = 1; select pg_sleep(0.1); select pg_stat_force_next_flush();

--- two things = keep
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create table stock (n int);
create function f() returns trigger language plpgsql as $$ begin insert into audit_log values (tg_op, new.qty); update stock set n = n - 1; if new.qty < 0 then raise exception 'no'; end if; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- security definer path = retire
create schema app;
create table o (id int primary key, qty int);
create table app.audit_log (op text, qty int);
create function f() returns trigger language plpgsql security definer set search_path = app as $$ begin insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- set config local path = review
create schema app;
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$ begin set local search_path = app, public; insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- setting in function config = review|retire
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql set session_replication_role = replica as $$ begin insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- dead branch by config = keep
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$ declare op constant text := lower(tg_op); begin if op = 'insert' and new.qty < 0 then raise exception 'x'; end if; insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- case expr guard = keep
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$ begin case tg_op when 'INSERT' then if new.qty < 0 then raise exception 'x'; end if; else null; end case; insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- unlogged partition home = keep
create table o (id int, qty int) partition by list (id);
create unlogged table o1 partition of o default;
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$ begin insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- two logs one not = defer
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create table sent_mail (op text, qty int);
create function f() returns trigger language plpgsql as $$ begin insert into audit_log values (tg_op, new.qty); insert into sent_mail values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- check dynamic using new = retire
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$ begin execute 'insert into audit_log values ($1, ($2).qty)' using tg_op, new; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- xml or array effect = defer
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create table stock (n int);
create function g(q int) returns int language sql as $$ update stock set n = n - q returning n $$;
create function f() returns trigger language plpgsql as $$ begin insert into audit_log values (tg_op, (array[g(new.qty), 2])[1]); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- subquery effect = defer
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create table stock (n int);
create function g(q int) returns int language sql as $$ update stock set n = n - q returning n $$;
create function f() returns trigger language plpgsql as $$ begin insert into audit_log values (tg_op, (select max(x) from (select g(1) as x union select 2) y)); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- order by effect = defer
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create table stock (n int);
create function g(q int) returns int language sql as $$ update stock set n = n - q returning n $$;
create function f() returns trigger language plpgsql as $$ begin insert into audit_log select tg_op, qty from o order by g(qty) limit g(1) offset g(2); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- on conflict where effect = defer|keep|review
create table o (id int primary key, qty int);
create table audit_log (op text primary key, qty int);
create table stock (n int);
create function g(q int) returns int language sql as $$ update stock set n = n - q returning n $$;
create function f() returns trigger language plpgsql as $$ begin insert into audit_log values (tg_op, 1) on conflict (op) do nothing; perform g(1); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- window default frame = defer
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create table stock (n int);
create function g(q int) returns int language sql as $$ update stock set n = n - q returning n $$;
create function f() returns trigger language plpgsql as $$ begin insert into audit_log select tg_op, sum(qty) over (partition by g(qty)) from o; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- procedure transaction = review|keep
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create procedure p() language plpgsql as $$ begin commit; end $$;
create function f() returns trigger language plpgsql as $$ begin call p(); insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- do block = review
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$ begin do $d$ begin raise exception 'x'; end $d$; insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- prepare execute = review
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$ begin execute 'prepare p as select 1'; execute 'execute p'; insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- several in one dynamic = keep|defer|review
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create table stock (n int);
create function f() returns trigger language plpgsql as $$ begin execute 'insert into audit_log values (1, 2); update stock set n = 1'; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- comment in dynamic = defer|review
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create table stock (n int);
create function f() returns trigger language plpgsql as $$ begin execute '/* insert into audit_log */ update stock set n = 1 -- x'; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- unicode ident = retire|defer
create table o (id int primary key, qty int);
create table "Überlog" (op text, qty int);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$ begin insert into U&"\00DCberlog" values (tg_op, new.qty); insert into audit_log values (tg_op, new.qty); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- a row that is not null has no null = keep
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$
begin
  if new is not null then
    insert into audit_log values (tg_op, new.qty);
  else
    raise exception 'nothing may be left out';
  end if;
  return null;
end $$;
create trigger t after insert on o for each row execute function f();

--- a row that is there may be null = keep
create table o (id int, qty int);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$
begin
  if new is null then raise exception 'not empty'; end if;
  insert into audit_log values (tg_op, new.qty);
  return null;
end $$;
create trigger t after insert on o for each row execute function f();

--- a row that is not there = retire
create table o (id int primary key, qty int);
create table audit_log (op text, qty int);
create function f() returns trigger language plpgsql as $$
begin
  if new is null then
    insert into audit_log values (tg_op, old.qty);
  else
    insert into audit_log values (tg_op, new.qty);
  end if;
  if old is null and tg_op = 'DELETE' then raise exception 'never'; end if;
  return null;
end $$;
create trigger t after insert or delete on o for each row execute function f();

--- call inout rec then return = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create procedure p2(inout r o) language plpgsql as $$ begin r.qty := 7; end $$;
create function f() returns trigger language plpgsql as $$ declare r o; begin r := new; call p2(r); insert into audit_log (op, row_id) values (tg_op, new.id); return r; end $$;
create trigger t before insert on o for each row execute function f();

--- rec old in update else branch = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ declare r record; begin if tg_op='INSERT' then r := new; else r := old; end if; insert into audit_log (op, row_id) values (tg_op, new.id); return r; end $$;
create trigger t before insert or update on o for each row execute function f();

--- rec old in update = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ declare r record; begin r := old; insert into audit_log (op, row_id) values (tg_op, new.id); return r; end $$;
create trigger t before update on o for each row execute function f();

--- rec new in delete = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ declare r record; begin r := new; insert into audit_log(op,row_id) values (tg_op, old.id); return r; end $$;
create trigger t before delete on o for each row execute function f();

--- others does not catch assert_failure = keep
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin begin if new.qty < 0 then raise assert_failure using message='no'; end if; exception when others then null; end; insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- others does not catch query_canceled = keep
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin begin if new.qty < 0 then raise exception 'no' using errcode='query_canceled'; end if; exception when others then null; end; insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- others does not catch 57014 = keep
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin begin if new.qty < 0 then raise sqlstate '57014'; end if; exception when others then null; end; insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- concat bool = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin if concat('x', true) = 'xt' then raise exception 'no'; end if; insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- btrim tab = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin if btrim(E'\tx') <> 'x' then raise exception 'no'; end if; insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- lower turkish = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin if upper('ß') = 'ß' then raise exception 'no'; end if; insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- perform fails 6 new note new doc = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin perform new.note ~ new.doc; insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- perform fails 12 xmlparse document new note = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin perform xmlparse(document new.note); insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- assign unused fails 0 sqrt new qty = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ declare v text; begin v := sqrt(new.qty)::text; insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- assign unused fails 9 select id from o where email new emai = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ declare v text; begin v := (select id from o where email = new.email)::text; insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- assign unused fails 17 new qty 0 = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ declare v text; begin v := new.qty % 0::text; insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- command 29 refresh materialized view mv = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin refresh materialized view mv; insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- policy operator reads log = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create table stock (id int primary key, n int);
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();
create function seen(i int, j int) returns bool language sql stable as 'select exists (select from audit_log a where a.row_id = i)'; create operator ~~~ (leftarg=int,rightarg=int,function=seen); alter table stock enable row level security; create policy pp on stock using (id ~~~ n);

--- rule reads log by function = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create table stock (id int primary key, n int);
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();
create function seen(i int) returns bool language sql stable as 'select exists (select from audit_log a where a.row_id = i)'; create rule rr as on delete to stock where seen(old.id) do instead nothing;

--- undo function dynamic = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();
create function undo() returns void language plpgsql as $$ declare r record; begin for r in select * from audit_log order by id desc limit 1 loop execute format('delete from %I where id = $1', r.op) using r.row_id; end loop; end $$;

--- consume select for update = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();
create function c() returns int language plpgsql as $$ declare i int; begin select id into i from audit_log order by id for update skip locked limit 1; return i; end $$;

--- queue col is_new boolean default true = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table change_log(id bigserial primary key, op text, row_id int, at timestamptz default now(), is_new boolean default true);
create function f() returns trigger language plpgsql as $$ begin insert into change_log(op,row_id) values (tg_op,new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- queue col flushed_at timestamptz = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table change_log(id bigserial primary key, op text, row_id int, at timestamptz default now(), flushed_at timestamptz);
create function f() returns trigger language plpgsql as $$ begin insert into change_log(op,row_id) values (tg_op,new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- queue col priority int default 0 = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table change_log(id bigserial primary key, op text, row_id int, at timestamptz default now(), priority int default 0);
create function f() returns trigger language plpgsql as $$ begin insert into change_log(op,row_id) values (tg_op,new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- queue col last_error text = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table change_log(id bigserial primary key, op text, row_id int, at timestamptz default now(), last_error text);
create function f() returns trigger language plpgsql as $$ begin insert into change_log(op,row_id) values (tg_op,new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- name points_log own cols = defer|keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table points_log(id bigserial primary key, title text, owner int, amount int);
create function f() returns trigger language plpgsql as $$ begin insert into points_log(title,owner,amount) values (new.note,new.owner,new.qty); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- truncate log then append = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin truncate audit_log; insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- insert casts by enum = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create type st as enum ('a','b'); create table st_log(op text, s st, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into st_log(op,s) values (tg_op, new.note::st); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- variable of enum = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create type st as enum ('a','b');
create function f() returns trigger language plpgsql as $$ declare v st; begin v := new.note; insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- variable int from text = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ declare v int; begin v := new.note; insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- if cast fails = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin if new.doc::jsonb is null then null; end if; insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- perform function returning json cast = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function h(t text) returns jsonb language sql immutable as 'select t::jsonb';
create function f() returns trigger language plpgsql as $$ begin perform h(new.doc); insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- policy aggregate reads log = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create table stock (id int primary key, n int);
create function seen(b bool, i int) returns bool language sql stable as 'select exists (select from audit_log a where a.row_id = i)'; create aggregate sa(int) (sfunc=seen, stype=bool); alter table stock enable row level security; create policy pp on stock using ((select sa(x) from (values (stock.id)) v(x)));
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- default operator reads log = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function seen(i int, j int) returns int language sql stable as 'select count(*)::int from audit_log a where a.row_id = i'; create operator ~~~ (leftarg=int,rightarg=int,function=seen); create table other(x int default 1 ~~~ 2);
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- check operator reads log = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function seen(i int, j int) returns bool language sql stable as 'select exists (select from audit_log a where a.row_id = i)'; create operator ~~~ (leftarg=int,rightarg=int,function=seen); create table other(x int, check (x ~~~ 2));
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- function notifies from log = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function pub() returns void language plpgsql as $$ declare r record; begin for r in select * from audit_log loop perform pg_notify('x', r.op); end loop; end $$;
create function f() returns trigger language plpgsql as $$ begin insert into audit_log (op, row_id) values (tg_op, new.id); return new; end $$;
create trigger t after insert on o for each row execute function f();

--- dynamic picks by tg_table to business = keep|defer|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table o_stats(op text, n int);
create function f() returns trigger language plpgsql as $$ begin execute format('insert into %I values ($1,1)', tg_table_name || '_stats') using tg_op; return new; end $$;
create trigger t after insert on o for each row execute function f();

--- r null when unset = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ declare r o; begin if new.qty > 0 then r := new; end if; insert into audit_log (op, row_id) values (tg_op, new.id); return r; end $$;
create trigger t before insert on o for each row execute function f();

--- r new then null in handler = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ declare r o; begin begin insert into audit_log (op, row_id) values (tg_op, new.id); r := new; exception when others then null; end; return r; end $$;
create trigger t before insert on o for each row execute function f();

--- r assigned after loop zero iterations = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ declare r o; begin for i in 1..new.qty loop r := new; end loop; insert into audit_log (op, row_id) values (tg_op, new.id); return r; end $$;
create trigger t before insert on o for each row execute function f();

--- r shadowed = keep|review
create table o (id int primary key, qty int, note text, email text, owner int not null default 1, tags text[], doc text);
create table audit_log (id bigserial primary key, op text, row_id int, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ declare r o; begin r := new; insert into audit_log (op, row_id) values (tg_op, new.id); declare r o; begin return r; end; end $$;
create trigger t before insert on o for each row execute function f();

-- Operator classes, checks in functions, last keys, casts of free text, narrow columns, TG_ variables, handlers.

--- opclass support function raises = keep
create table o (id int primary key, qty int, note text);
create table o_log (id bigserial primary key, qty int, op text, at timestamptz default now());
create function cmp(a int, b int) returns int language plpgsql immutable as $$ begin if a < 0 or b < 0 then raise exception 'no'; end if; return case when a < b then -1 when a > b then 1 else 0 end; end $$;
create operator class odd for type int using btree as operator 1 <, operator 2 <=, operator 3 =, operator 4 >=, operator 5 >, function 1 cmp(int, int);
create index on o_log (qty odd);
create function f() returns trigger language plpgsql as $$ begin insert into o_log (qty, op) values (new.qty, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- opclass hash function raises = keep
create table o (id int primary key, qty int, note text);
create table o_log (id bigserial primary key, note text, op text, at timestamptz default now());
create function hsh(a text) returns int language plpgsql immutable as $$ begin if a = 'x' then raise exception 'no'; end if; return 1; end $$;
create operator class oddh for type text using hash as operator 1 =, function 1 hsh(text);
create index on o_log using hash (note oddh);
create function f() returns trigger language plpgsql as $$ begin insert into o_log (note, op) values (new.note, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- opclass reads the log = keep
create table o (id int primary key, qty int, note text);
create table o_log (id bigserial primary key, qty int, op text, at timestamptz default now());
create table p (id int primary key, qty int);
create function cmp(a int, b int) returns int language plpgsql immutable as $$ begin if exists (select from o_log where qty = a) then return 0; end if; return case when a < b then -1 when a > b then 1 else 0 end; end $$;
create operator class odd for type int using btree as operator 1 <, operator 2 <=, operator 3 =, operator 4 >=, operator 5 >, function 1 cmp(int, int);
create unique index on p (qty odd);
create function f() returns trigger language plpgsql as $$ begin insert into o_log (qty, op) values (new.qty, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- opclass of target raises = keep
create table o (id int primary key, qty int, note text);
create table stock (id int primary key, qty int);
create function cmp(a int, b int) returns int language plpgsql immutable as $$ begin if a < 0 or b < 0 then raise exception 'no'; end if; return case when a < b then -1 when a > b then 1 else 0 end; end $$;
create operator class odd for type int using btree as operator 1 <, operator 2 <=, operator 3 =, operator 4 >=, operator 5 >, function 1 cmp(int, int);
create index on stock (qty odd);
create function f() returns trigger language plpgsql as $$ begin update stock set qty = qty - new.qty where id = new.id; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- default opclass of own type = keep
create type pair as (a int, b int);
create table o (id int primary key, qty int);
create table o_log (id bigserial primary key, p pair, op text, at timestamptz default now());
create function cmp(x pair, y pair) returns int language plpgsql immutable as $$ begin if (x).a < 0 or (y).a < 0 then raise exception 'no'; end if; return (x).a - (y).a; end $$;
create function lt(x pair, y pair) returns bool language sql immutable as 'select (x).a < (y).a';
create operator <<< (function = lt, leftarg = pair, rightarg = pair);
create operator class pp default for type pair using btree as operator 1 <<<, function 1 cmp(pair, pair);
create index on o_log (p pp);
create function f() returns trigger language plpgsql as $$ begin insert into o_log (p, op) values (row(new.qty, 1)::pair, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- procedure checks the counter = keep
create table item (id int primary key, stock int not null);
create table line (id int primary key, item int not null references item, qty int not null);
create function f() returns trigger language plpgsql as $$ begin update item set stock = stock - new.qty where id = new.item; return null; end $$;
create trigger t after insert on line for each row execute function f();
create function check_stock(i int) returns void language plpgsql as $$ declare s int; begin select stock into s from item where id = i; if s < 0 then raise exception 'out of stock'; end if; end $$;

--- procedure that writes and checks the counter = keep
create table item (id int primary key, stock int not null);
create table line (id int primary key, item int not null references item, qty int not null);
create function f() returns trigger language plpgsql as $$ begin update item set stock = stock - new.qty where id = new.item; return null; end $$;
create trigger t after insert on line for each row execute function f();
create function buy(i int, q int) returns void language plpgsql as $$ begin perform check_stock(i); insert into line values (1, i, q); end $$;
create function check_stock(i int) returns void language plpgsql as $$ begin if (select stock from item where id = i) < 0 then raise exception 'out of stock'; end if; end $$;

--- function that raises when there is no row = defer
create table item (id int primary key, name text, stock int not null);
create table line (id int primary key, item int not null references item, qty int not null);
create function f() returns trigger language plpgsql as $$ begin update item set stock = stock - new.qty where id = new.item; return null; end $$;
create trigger t after insert on line for each row execute function f();
create function item_name(i int) returns text language plpgsql as $$ declare s text; begin select name into s from item where id = i; if s is null then raise exception 'no such item'; end if; return s; end $$;

--- log id by currval = keep
create table o (id int primary key, qty int);
create table o_log (id bigserial primary key, qty int, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (qty, op) values (new.qty, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();
create function last_log() returns bigint language sql as $$ select currval('o_log_id_seq') $$;

--- log id by lastval = keep
create table o (id int primary key, qty int);
create table o_log (id bigserial primary key, qty int, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (qty, op) values (new.qty, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();
create function save(i int) returns bigint language plpgsql as $$ begin insert into o values (i, 1); return lastval(); end $$;

--- currval by serial sequence = keep
create table o (id int primary key, qty int);
create table o_log (id bigserial primary key, qty int, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (qty, op) values (new.qty, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();
create function save(i int) returns bigint language plpgsql as $$ begin insert into o values (i, 1); return currval(pg_get_serial_sequence('o_log', 'id')); end $$;

--- currval in another trigger = keep
create table o (id int primary key, qty int);
create table o_log (id bigserial primary key, qty int, op text, at timestamptz default now());
create table link (log bigint, o int);
create function f() returns trigger language plpgsql as $$ begin insert into o_log (qty, op) values (new.qty, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();
create function g() returns trigger language plpgsql as $$ begin insert into link values (currval('o_log_id_seq'), new.id); return null; end $$;
create trigger u after insert on o for each row execute function g();

--- currval after own insert = retire
create table o (id int primary key, qty int);
create table o_log (id bigserial primary key, qty int, op text, at timestamptz default now());
create table o_log_part (log bigint references o_log, at timestamptz default now(), op text);
create function f() returns trigger language plpgsql as $$ begin insert into o_log (qty, op) values (new.qty, tg_op); insert into o_log_part (log, op) values (currval('o_log_id_seq'), tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- currval of another sequence = retire
create table o (id serial primary key, qty int);
create table o_log (id bigserial primary key, qty int, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (qty, op) values (new.qty, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();
create function save(i int) returns bigint language plpgsql as $$ begin insert into o (qty) values (i); return currval('o_id_seq'); end $$;

--- default by currval = keep
create table o (id int primary key, qty int);
create table o_log (id bigserial primary key, qty int, op text, at timestamptz default now());
create table link (log bigint default currval('o_log_id_seq'), o int);
create function f() returns trigger language plpgsql as $$ begin insert into o_log (qty, op) values (new.qty, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- cast of a json text = keep|review
create table o (id int primary key, doc jsonb not null);
create table o_log (id bigserial primary key, n int, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (n, op) values ((new.doc->>'x')::int, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- cast of a json path = keep|review
create table o (id int primary key, doc jsonb not null);
create table o_log (id bigserial primary key, n int, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (n, op) values ((new.doc #>> '{a,b}')::int, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- cast of trim = keep|review
create table o (id int primary key, note text);
create table o_log (id bigserial primary key, n int, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (n, op) values (trim(new.note)::int, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- cast of substring = keep|review
create table o (id int primary key, note text);
create table o_log (id bigserial primary key, n int, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (n, op) values (substring(new.note from 3)::int, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- cast of nullif = keep|review
create table o (id int primary key, note text);
create table o_log (id bigserial primary key, n int, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (n, op) values (nullif(new.note, '')::int, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- cast of a variable = keep|review
create table o (id int primary key, note text);
create table o_log (id bigserial primary key, n int, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ declare v text := new.note; begin insert into o_log (n, op) values (v::int, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- cast of json of the row = keep|review
create table o (id int primary key, note text);
create table o_log (id bigserial primary key, n int, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (n, op) values ((to_jsonb(new)->>'note')::int, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- cast of json of the rows key = retire
create table o (id int primary key, note text);
create table o_log (id bigserial primary key, n int, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (n, op) values ((to_jsonb(new)->>'id')::int, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- cast of a setting = retire
create table o (id int primary key, note text);
create table o_log (id bigserial primary key, n int, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (n, op) values (nullif(current_setting('app.user_id', true), '')::int, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- cast of transition rows = keep|review
create table o (id int primary key, note text);
create table o_log (id bigserial primary key, n int, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (n, op) select n.note::int, tg_op from nn n; return null; end $$;
create trigger t after insert on o referencing new table as nn for each statement execute function f();

--- integer cast narrowing = keep|review
create table o (id bigint primary key, note text);
create table o_log (id bigserial primary key, n int, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (n, op) values (new.id::smallint, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- assigns tg_op = keep|retire
create table o (id bigint primary key, note text);
create table o_log (id bigserial primary key, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin tg_op := 'X'; insert into o_log (op) values (tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- assigns tg_argv = keep|review|retire
create table o (id bigint primary key, note text);
create table o_log (id bigserial primary key, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin tg_argv[0] := 'X'; insert into o_log (op) values (tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- unique violation handled = retire
create table o (id bigint primary key, note text not null);
create table note_log (note text unique, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into note_log (note, op) values (new.note, tg_op); return null; exception when unique_violation then return null; end $$;
create trigger t after insert on o for each row execute function f();

--- unique violation on conflict = retire
create table o (id bigint primary key, note text not null);
create table note_log (note text unique, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into note_log (note, op) values (new.note, tg_op) on conflict do nothing; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- unique violation handled before = retire
create table o (id bigint primary key, note text not null);
create table note_log (note text unique, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin begin insert into note_log (note, op) values (new.note, tg_op); exception when unique_violation then null; end; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- assigns tg_op raising = keep
create table o (id bigint primary key, note text);
create table o_log (id bigserial primary key, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin tg_op := 'X'; if tg_op = 'X' then raise exception 'no'; end if; insert into o_log (op) values (tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- assigns tg_op by select = keep|review|retire
create table o (id bigint primary key, note text);
create table o_log (id bigserial primary key, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin select 'X' into tg_op; if tg_op = 'X' then raise exception 'no'; end if; insert into o_log (op) values (tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- narrow varchar = keep|review
create table o (id bigint primary key, note text);
create table o_log (id bigserial primary key, note varchar(5), op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (note, op) values (new.note, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- narrow int = keep|review
create table o (id bigint primary key, note text);
create table o_log (id bigserial primary key, o int, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (o, op) values (new.id, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- narrow numeric = keep|review
create table o (id bigint primary key, note numeric);
create table o_log (id bigserial primary key, o numeric(5,2), op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (o, op) values (new.note, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- narrow target = keep|review
create table o (id bigint primary key, note text);
create table p (id bigint primary key, note varchar(5));
create function f() returns trigger language plpgsql as $$ begin update p set note = new.note where id = new.id; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- as wide = retire
create table o (id int primary key, note varchar(5));
create table o_log (id bigserial primary key, note varchar(5), o bigint, op varchar(10), tab varchar(63), at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (note, op, o, tab) values (new.note, tg_op, new.id, tg_table_name); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- narrow by variable = keep|review
create table o (id bigint primary key, note text);
create table o_log (id bigserial primary key, note varchar(5), op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ declare v text; begin v := new.note; insert into o_log (note, op) values (v, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- too narrow for the operation = keep|review
create table o (id bigint primary key, note text);
create table o_log (id bigserial primary key, op varchar(3), at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (op) values (tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- others handled = retire
create table o (id bigint primary key, note text not null);
create table note_log (note text unique, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into note_log (note, op) values (new.note, tg_op); return null; exception when others then return null; end $$;
create trigger t after insert on o for each row execute function f();

--- unique violation retried by update = defer
create table o (id bigint primary key, note text not null);
create table note_count (note text primary key, n int default 1);
create function f() returns trigger language plpgsql as $$ begin begin insert into note_count (note) values (new.note); exception when unique_violation then update note_count set n = n + 1 where note = new.note; end; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- unique violation told anew = keep
create table o (id bigint primary key, note text not null);
create table note_log (note text unique, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into note_log (note, op) values (new.note, tg_op); return null; exception when unique_violation then raise exception 'twice'; end $$;
create trigger t after insert on o for each row execute function f();

--- check violation is not unique = keep|review
create table o (id bigint primary key, note text not null);
create table note_log (note text unique check (note <> 'x'), op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into note_log (note, op) values (new.note, tg_op); return null; exception when unique_violation then return null; end $$;
create trigger t after insert on o for each row execute function f();

--- tg_op is not what it was = keep|review
create table o (id bigint primary key, note text);
create table o_log (id bigserial primary key, op text check (op = 'INSERT'), at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin tg_op := 'X'; insert into o_log (op) values (tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- merge with statement counts = review
create table o (id bigint primary key, k text);
create table tally (k text primary key, n int);
create function f() returns trigger language plpgsql as $$ begin merge into tally t using (select 'x'::text as k) s on t.k = s.k when matched then update set n = t.n + 1 when not matched then insert values (s.k, 1); return null; end $$;
create trigger t after insert on o for each statement execute function f();

--- statement by cte = review
create table o (id bigint primary key, k text);
create table tally (k text, n int);
create function f() returns trigger language plpgsql as $$ begin with c as (select k, count(*) as n from nn group by k) insert into tally select k, n from c; return null; end $$;
create trigger t after insert on o referencing new table as nn for each statement execute function f();

--- statement by cte adds = defer
create table o (id bigint primary key, k text);
create table tally (k text, n int);
create function f() returns trigger language plpgsql as $$ begin with c as (select k, count(*) as n from nn group by k) update tally t set n = t.n + c.n from c where c.k = t.k; return null; end $$;
create trigger t after insert on o referencing new table as nn for each statement execute function f();

--- statement loop over cursor = review
create table o (id bigint primary key, k text);
create table tally (k text, n int);
create function f() returns trigger language plpgsql as $$ declare c cursor for select k from nn; r record; begin open c; loop fetch c into r; exit when not found; update tally set n = n + 1 where k = r.k; end loop; close c; return null; end $$;
create trigger t after insert on o referencing new table as nn for each statement execute function f();

--- statement while counts = review
create table o (id bigint primary key, k text);
create table tally (k text, n int);
create function f() returns trigger language plpgsql as $$ begin for i in 1..3 loop update tally set n = n + 1; end loop; return null; end $$;
create trigger t after insert on o for each statement execute function f();

--- statement dynamic counts = review
create table o (id bigint primary key, k text);
create table tally (k text, n int);
create function f() returns trigger language plpgsql as $$ begin execute format('update tally set n = n + 1 where k = %L', tg_table_name); return null; end $$;
create trigger t after insert on o for each statement execute function f();

--- statement adds a minimum = review
create table o (id bigint primary key, k text, v int);
create table tally (k text, n int);
create function f() returns trigger language plpgsql as $$ begin update tally set n = n + (select max(v) from nn); return null; end $$;
create trigger t after insert on o referencing new table as nn for each statement execute function f();

--- statement sets greatest of sum = review
create table o (id bigint primary key, k text, v int);
create table tally (k text, n int);
create function f() returns trigger language plpgsql as $$ begin update tally set n = greatest(n, (select sum(v) from nn)); return null; end $$;
create trigger t after insert on o referencing new table as nn for each statement execute function f();

--- statement multiplies by count = review
create table o (id bigint primary key, k text, v int);
create table tally (k text, n int);
create function f() returns trigger language plpgsql as $$ begin update tally set n = n * (select count(*) from nn); return null; end $$;
create trigger t after insert on o referencing new table as nn for each statement execute function f();

--- statement adds count squared = review
create table o (id bigint primary key, k text, v int);
create table tally (k text, n int);
create function f() returns trigger language plpgsql as $$ begin update tally set n = n + (select count(*) * count(*) from nn); return null; end $$;
create trigger t after insert on o referencing new table as nn for each statement execute function f();

--- statement adds a constant beside a sum = review
create table o (id bigint primary key, k text, v int);
create table tally (k text, n int);
create function f() returns trigger language plpgsql as $$ begin update tally set n = n + 1 + (select sum(v) from nn); return null; end $$;
create trigger t after insert on o referencing new table as nn for each statement execute function f();

--- statement tells the size of its table = defer
create table o (id bigint primary key, k text, v int);
create function f() returns trigger language plpgsql as $$ begin perform pg_notify('c', (select count(*) from o)::text); return null; end $$;
create trigger t after insert on o for each statement execute function f();

--- statement selected one row = review
create table o (id bigint primary key, k text, v int);
create table tally (k text, n int);
create function f() returns trigger language plpgsql as $$ declare r record; begin select * into r from nn; update tally set n = 1 where k = r.k; return null; end $$;
create trigger t after insert on o referencing new table as nn for each statement execute function f();

--- statement deletes by count = review
create table o (id bigint primary key, k text, v int);
create table tally (k text, n int);
create function f() returns trigger language plpgsql as $$ begin delete from tally where n < (select count(*) from nn); return null; end $$;
create trigger t after insert on o referencing new table as nn for each statement execute function f();

--- statement upsert by found = review
create table o (id bigint primary key, k text, v int);
create table tally (k text, n int);
create function f() returns trigger language plpgsql as $$ begin update tally set n = n + 1 where k = tg_table_name; if not found then insert into tally values (tg_table_name, 1); end if; return null; end $$;
create trigger t after insert on o for each statement execute function f();

--- check through sql function = keep
create table item (id int primary key, stock int not null);
create table line (id int primary key, item int not null references item, qty int not null);
create function f() returns trigger language plpgsql as $$ begin update item set stock = stock - new.qty where id = new.item; return null; end $$;
create trigger t after insert on line for each row execute function f();
create function stock_of(i int) returns int language sql as $$ select stock from item where id = i $$;
create function check_stock(i int) returns void language plpgsql as $$ begin if stock_of(i) < 0 then raise exception 'out of stock'; end if; end $$;

--- check through a view = keep
create table item (id int primary key, stock int not null);
create table line (id int primary key, item int not null references item, qty int not null);
create view short as select id from item where stock < 0;
create function f() returns trigger language plpgsql as $$ begin update item set stock = stock - new.qty where id = new.item; return null; end $$;
create trigger t after insert on line for each row execute function f();
create function check_stock() returns void language plpgsql as $$ begin if exists (select from short) then raise exception 'out of stock'; end if; end $$;

--- check by loop = keep
create table item (id int primary key, stock int not null);
create table line (id int primary key, item int not null references item, qty int not null);
create function f() returns trigger language plpgsql as $$ begin update item set stock = stock - new.qty where id = new.item; return null; end $$;
create trigger t after insert on line for each row execute function f();
create function check_stock() returns void language plpgsql as $$ declare r record; begin for r in select * from item where stock < 0 loop raise exception 'out of %', r.id; end loop; end $$;

--- check by perform found = keep
create table item (id int primary key, stock int not null);
create table line (id int primary key, item int not null references item, qty int not null);
create function f() returns trigger language plpgsql as $$ begin update item set stock = stock - new.qty where id = new.item; return null; end $$;
create trigger t after insert on line for each row execute function f();
create function check_stock(i int) returns void language plpgsql as $$ begin perform 1 from item where id = i and stock >= 0; if not found then raise exception 'out of stock'; end if; end $$;

--- division by the counter = defer
create table item (id int primary key, stock int not null);
create table line (id int primary key, item int not null references item, qty int not null);
create function f() returns trigger language plpgsql as $$ begin update item set stock = stock - new.qty where id = new.item; return null; end $$;
create trigger t after insert on line for each row execute function f();
create function check_stock(i int) returns int language sql as $$ select 1 / stock from item where id = i $$;

--- casts in a called function = keep|review
create table o (id int primary key, doc jsonb not null);
create table o_log (id bigserial primary key, n int, op text, at timestamptz default now());
create function num(d jsonb, k text) returns int language sql as $$ select (d ->> k)::int $$;
create function f() returns trigger language plpgsql as $$ begin insert into o_log (n, op) values (num(new.doc, 'x'), tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- casts in jsonb_populate_record = keep|review
create table o (id int primary key, doc jsonb not null);
create table o_log (id bigserial primary key, n int, op text, at timestamptz default now());
create type pn as (n int);
create function f() returns trigger language plpgsql as $$ declare r pn; begin r := jsonb_populate_record(null::pn, new.doc); insert into o_log (n, op) values (r.n, tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- to_number of a text = keep|review
create table o (id int primary key, note text);
create table o_log (id bigserial primary key, n numeric, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (n, op) values (to_number(new.note, '999'), tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- to_date of a text = keep|review
create table o (id int primary key, note text);
create table o_log (id bigserial primary key, d date, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (d, op) values (to_date(new.note, 'YYYY-MM-DD'), tg_op); return null; end $$;
create trigger t after insert on o for each row execute function f();

--- array elements of a document = retire
create table o (id int primary key, doc jsonb not null);
create table o_log (id bigserial primary key, tag text, op text, at timestamptz default now());
create function f() returns trigger language plpgsql as $$ begin insert into o_log (tag, op) select e, tg_op from jsonb_array_elements_text(new.doc) e; return null; end $$;
create trigger t after insert on o for each row execute function f();

--- soft delete whose where does not leave out what is refused = keep
create table o (id int primary key, gone timestamptz);
create table part (id int primary key, o_id int, gone timestamptz, locked_at timestamptz);
create function g() returns trigger language plpgsql as $$
begin if old.locked_at is not null then raise exception 'locked'; end if; return new; end $$;
create trigger guard before update on part for each row execute function g();
create function f() returns trigger language plpgsql as $$
begin update part set gone = new.gone where o_id = new.id and gone is null; return null; end $$;
create trigger t after update of gone on o for each row execute function f();

--- soft delete whose where asks for one of two = keep
create table o (id int primary key, gone timestamptz);
create table part (id int primary key, o_id int, gone timestamptz);
create function g() returns trigger language plpgsql as $$
begin if old.gone is not null then raise exception 'gone'; end if; return new; end $$;
create trigger guard before update on part for each row execute function g();
create function f() returns trigger language plpgsql as $$
begin update part set gone = new.gone where o_id = new.id and gone is null or id = 0; return null; end $$;
create trigger t after update of gone on o for each row execute function f();

--- soft delete whose where is about another table = keep
create table o (id int primary key, gone timestamptz);
create table part (id int primary key, o_id int, gone timestamptz);
create table other (id int primary key, closed timestamptz);
create function g() returns trigger language plpgsql as $$
begin if old.gone is not null then raise exception 'gone'; end if; return new; end $$;
create trigger guard before update on part for each row execute function g();
create function f() returns trigger language plpgsql as $$
begin update part set gone = new.gone from other where o_id = new.id and other.id = o_id and closed is null; return null; end $$;
create trigger t after update of gone on o for each row execute function f();

--- soft delete that sets off a check of balances = keep
create table o (id int primary key, gone timestamptz);
create table part (id int primary key, o_id int, qty int, gone timestamptz);
create table balance (id int primary key, total int check (total >= 0));
create function g() returns trigger language plpgsql as $$
begin update part set qty = 0 where id = new.id and qty <> 0; update balance set total = total - old.qty; return null; end $$;
create trigger sums after update of gone on part for each row execute function g();
create function f() returns trigger language plpgsql as $$
begin update part set gone = new.gone where o_id = new.id and gone is null; return null; end $$;
create trigger t after update of gone on o for each row execute function f();
