-- What looks like audit and is not: somebody depends on the log at once. And what looks like business and only appends.

create extension btree_gist;

-- The log as a guard. ---------------------------------------------------------------------------------------------------
create table payment (id int primary key, idempotency_key text, amount numeric, log_id bigint);
create table payment_log (id bigserial primary key, idempotency_key text unique, payment_id int, at timestamptz default now());
create function log_payment() returns trigger language plpgsql as $$
begin
  insert into payment_log (idempotency_key, payment_id) values (new.idempotency_key, new.id);
  return null;
end $$;
-- = keep: enforced-target
-- Because: the unique key of the log is what refuses the same payment twice; payment itself has no such key.
create trigger log_payment after insert on payment for each row execute function log_payment();

create table transfer (id int primary key, account int, amount numeric);
create table transfer_log (id bigserial primary key, account int, amount numeric check (amount > 0), at timestamptz default now());
create function log_transfer() returns trigger language plpgsql as $$
begin
  insert into transfer_log (account, amount) values (new.account, new.amount);
  return null;
end $$;
-- = keep: enforced-target
-- Because: the log's CHECK refuses negative amounts, and transfer has none.
create trigger log_transfer after insert on transfer for each row execute function log_transfer();

create table booking (id int primary key, room int, during tsrange);
create table booking_log (room int, during tsrange, at timestamptz default now(), exclude using gist (room with =, during with &&));
create function log_booking() returns trigger language plpgsql as $$
begin
  insert into booking_log (room, during) values (new.room, new.during);
  return null;
end $$;
-- = keep: enforced-target
-- Because: the exclusion constraint of the log refuses double bookings.
create trigger log_booking after insert on booking for each row execute function log_booking();

create table coupon_use (id int primary key, coupon text, account int);
create table coupon_log (coupon text, account int, at timestamptz default now());
create unique index coupon_once on coupon_log (lower(coupon), account);
create function log_coupon() returns trigger language plpgsql as $$
begin
  insert into coupon_log (coupon, account) values (new.coupon, new.account);
  return null;
end $$;
-- = keep: enforced-target
-- Because: a unique index over an expression is a guard as well: a coupon is used once an account.
create trigger log_coupon after insert on coupon_use for each row execute function log_coupon();

-- The log's key goes into the row. --------------------------------------------------------------------------------------
create table audit_log (id bigserial primary key, entity text, entity_id int, op text, data jsonb, at timestamptz default now());
create function log_before() returns trigger language plpgsql as $$
begin
  insert into audit_log (entity, entity_id, op, data) values (tg_table_name, new.id, tg_op, to_jsonb(new))
  returning id into new.log_id;
  return new;
end $$;
-- = keep: changes-new
-- Because: RETURNING puts the log's key into the row.
create trigger log_before before insert on payment for each row execute function log_before();

create table order_log (id bigserial primary key, order_id int, op text, data jsonb);
create table orders (id int primary key, state text, last_log_id bigint);
create function log_order() returns trigger language plpgsql as $$
declare
  written bigint;
begin
  insert into order_log (order_id, op, data) values (new.id, tg_op, to_jsonb(new)) returning id into written;
  update orders set last_log_id = written where id = new.id;
  return null;
end $$;
-- = keep: writes-own-table
-- Because: the row points at its last log entry.
create trigger log_order after insert on orders for each row execute function log_order();

create table ticket (id int primary key, state text);
create table ticket_log (id bigserial primary key, ticket_id int, op text, data jsonb);
create table ticket_attachment (log_id bigint references ticket_log, name text);
create function log_ticket() returns trigger language plpgsql as $$
declare
  written bigint;
begin
  insert into ticket_log (ticket_id, op, data) values (new.id, tg_op, to_jsonb(new)) returning id into written;
  insert into ticket_attachment (log_id, name) values (written, new.state);
  return null;
end $$;
-- = defer: writes-other-table
-- Because: other rows refer to the log's.
create trigger log_ticket after insert on ticket for each row execute function log_ticket();

-- The log is read. --------------------------------------------------------------------------------------------------------
create table login (id int primary key, account int, ok boolean);
create table login_log (account int, ok boolean, at timestamptz default now());
create function log_login() returns trigger language plpgsql as $$
begin
  insert into login_log (account, ok) values (new.account, new.ok);
  return null;
end $$;
-- = keep: feeds-a-keeper
-- Because: too_many_logins counts the log's rows before it lets the next one in.
create trigger log_login after insert on login for each row execute function log_login();
create function too_many_logins() returns trigger language plpgsql as $$
declare
  failed int;
begin
  select count(*) into failed from login_log l where l.account = new.account and not l.ok and l.at > now() - interval '5 minutes';
  if failed >= 5 then
    raise exception 'account % is locked', new.account using errcode = '28000';
  end if;
  return new;
end $$;
-- = keep: raises
create trigger too_many_logins before insert on login for each row execute function too_many_logins();

create table api_call (id int primary key, client int);
create table api_call_log (client int, at timestamptz default now());
create function log_api_call() returns trigger language plpgsql as $$
begin
  insert into api_call_log (client) values (new.client);
  return null;
end $$;
create function require_budget(who int) returns void language plpgsql as $$
begin
  if (select count(*) from api_call_log where client = who and at > now() - interval '1 minute') > 100 then
    raise exception 'rate limit';
  end if;
end $$;
-- = keep: feeds-a-check
-- Because: require_budget() refuses by counting the log: whether it may count a moment late, only its owner can say.
create trigger log_api_call after insert on api_call for each row execute function log_api_call();

create table stock_move (id int primary key, item int, qty int);
create table stock_move_log (item int, qty int, at timestamptz default now());
create function stock_of(which int) returns bigint language sql stable as $$
  select coalesce(sum(qty), 0) from stock_move_log where item = which
$$;
create function log_stock_move() returns trigger language plpgsql as $$
begin
  insert into stock_move_log (item, qty) values (new.item, new.qty);
  return null;
end $$;
-- = keep
-- Because: the stock is the sum of the log, and a CHECK of reservation looks at it.
create trigger log_stock_move after insert on stock_move for each row execute function log_stock_move();
create table reservation (id int primary key, item int, qty int, check (qty <= stock_of(item)));

create table approval (id int primary key, doc int, who text);
create table approval_log (doc int, who text, at timestamptz default now());
create function approvals(which int) returns bigint language sql volatile as $$ select count(*) from approval_log where doc = which $$;
create function log_approval() returns trigger language plpgsql as $$
begin
  insert into approval_log (doc, who) values (new.doc, new.who);
  return null;
end $$;
create function publish_when_approved() returns trigger language plpgsql as $$
begin
  new.public := approvals(new.id) >= 2;
  return new;
end $$;
create table doc (id int primary key, public boolean);
-- = keep: feeds-a-keeper
-- Because: whether a document may be public is counted in the log, through a function, in the next statement.
create trigger log_approval after insert on approval for each row execute function log_approval();
-- = keep: changes-new
create trigger publish_when_approved before update on doc for each row execute function publish_when_approved();

create table visit (id int primary key, page int);
create table visit_log (page int, at timestamptz default now());
create materialized view popular as select page, count(*) as visits from visit_log group by page;
create function log_visit() returns trigger language plpgsql as $$
begin
  insert into visit_log (page) values (new.page);
  return null;
end $$;
-- = retire: appends-to-log
-- Because: a report over the log is made now and then, and can be made from the store.
create trigger log_visit after insert on visit for each row execute function log_visit();

create table quote (id int primary key, no text, total numeric);
create table quote_log (n int, quote_id int);
create function next_quote_no() returns text language plpgsql as $$
begin
  return 'Q-' || (select coalesce(max(n), 0) + 1 from quote_log);
end $$;
alter table quote alter column no set default next_quote_no();
create function log_quote() returns trigger language plpgsql as $$
begin
  insert into quote_log (n, quote_id) values (substr(new.no, 3)::int, new.id);
  return null;
end $$;
-- = keep
-- Because: the next quote's number is a column default that counts in the log: the second INSERT must see the first one's row.
create trigger log_quote after insert on quote for each row execute function log_quote();

-- The log is not what it is called. ---------------------------------------------------------------------------------------
create table msg (id int primary key, body text);
create table messages (id int, body text, at timestamptz default now());
create table message_audit_log (op text) inherits (messages);
create function log_msg() returns trigger language plpgsql as $$
begin
  insert into message_audit_log (id, body, op) values (new.id, new.body, tg_op);
  return null;
end $$;
-- = defer: writes-other-table
-- Because: the log inherits from messages: whoever selects from messages sees its rows.
create trigger log_msg after insert on msg for each row execute function log_msg();

create table tally (id int primary key, kind text);
create table readings (kind text, at timestamptz default now()) partition by list (kind);
create table readings_audit_log partition of readings default;
create function log_tally() returns trigger language plpgsql as $$
begin
  insert into readings_audit_log (kind) values (new.kind);
  return null;
end $$;
-- = defer: writes-other-table
-- Because: the log is a partition of readings, a table that the application reads.
create trigger log_tally after insert on tally for each row execute function log_tally();

create foreign data wrapper elsewhere;
create server audit_server foreign data wrapper elsewhere;
create foreign table remote_audit_log (id int, op text) server audit_server;
create function log_remotely() returns trigger language plpgsql as $$
begin
  insert into remote_audit_log (id, op) values (new.id, tg_op);
  return null;
end $$;
-- = defer: writes-other-table
-- Because: the rows go to another server: somebody collects them there, and they are not in this WAL to be compared.
create trigger log_remotely after insert on msg for each row execute function log_remotely();

create table shipment (id int primary key, address text);
create table shipment_event_log (id bigserial primary key, shipment_id int, op text, data jsonb, published boolean default false);
create function log_shipment() returns trigger language plpgsql as $$
begin
  insert into shipment_event_log (shipment_id, op, data) values (new.id, tg_op, to_jsonb(new));
  return null;
end $$;
-- = defer: writes-other-table
-- Because: published boolean default false: somebody goes through these rows and publishes them.
create trigger log_shipment after insert or update on shipment for each row execute function log_shipment();

create table change_log (entity text, entity_id int, n int default 1, at timestamptz default now(), primary key (entity, entity_id));
create function log_change_count() returns trigger language plpgsql as $$
begin
  insert into change_log as c (entity, entity_id) values (tg_table_name, new.id)
  on conflict (entity, entity_id) do update set n = c.n + 1, at = excluded.at;
  return null;
end $$;
-- = defer: writes-other-table
-- Because: an upsert: the table holds one row an entity, the latest state and not the past.
create trigger log_change_count after insert or update on shipment for each row execute function log_change_count();

create table refresh_log (at timestamptz default now());
create materialized view addresses as select distinct address from shipment;
create function refresh_now_and_then() returns trigger language plpgsql as $$
begin
  if not exists (select from refresh_log where at > now() - interval '1 minute') then
    refresh materialized view addresses;
    insert into refresh_log default values;
  end if;
  return null;
end $$;
-- = review: counts-statements
-- Because: it refreshes a view now and then; whether once a transaction is often enough, its text does not say.
create trigger refresh_now_and_then after insert or update on shipment
  for each statement execute function refresh_now_and_then();

-- Logs, and something else. -------------------------------------------------------------------------------------------------
create table account (id int primary key, email text, plan text, logins int default 0);
create table account_log (account_id int, op text, data jsonb, at timestamptz default now());
create table account_stats (plan text primary key, n int);
create function log_and_notify() returns trigger language plpgsql as $$
begin
  insert into account_log (account_id, op, data) values (new.id, tg_op, to_jsonb(new));
  perform pg_notify('accounts', json_build_object('id', new.id, 'op', tg_op)::text);
  return null;
end $$;
-- = defer: notifies
-- Because: listeners wait for it.
create trigger log_and_notify after insert or update on account for each row execute function log_and_notify();
create function log_and_count() returns trigger language plpgsql as $$
begin
  insert into account_log (account_id, op, data) values (old.id, tg_op, to_jsonb(old));
  update account_stats set n = n - 1 where plan = old.plan;
  return null;
end $$;
-- = defer: writes-other-table
create trigger log_and_count after delete on account for each row execute function log_and_count();
create function log_and_normalise() returns trigger language plpgsql as $$
begin
  insert into account_log (account_id, op, data) values (new.id, tg_op, to_jsonb(new));
  new.email := lower(trim(new.email));
  return new;
end $$;
-- = keep: changes-new
create trigger log_and_normalise before insert or update on account for each row execute function log_and_normalise();
create function log_and_forbid() returns trigger language plpgsql as $$
begin
  insert into account_log (account_id, op, data) values (old.id, tg_op, to_jsonb(old));
  if old.plan = 'enterprise' then
    raise exception 'enterprise accounts are closed by hand';
  end if;
  return old;
end $$;
-- = keep: raises
create trigger log_and_forbid before delete on account for each row execute function log_and_forbid();
create function log_quietly_stops() returns trigger language plpgsql as $$
begin
  insert into account_log (account_id, op, data) values (new.id, tg_op, to_jsonb(new));
  if new.plan is null then
    return null;
  end if;
  return new;
end $$;
-- = keep: cancels-row
-- Because: without a word, rows that have no plan are not written.
create trigger log_quietly_stops before insert on account for each row execute function log_quietly_stops();
create sequence account_log_no;
create table account_numbered_log (no bigint default nextval('account_log_no'), account_id int, token uuid default gen_random_uuid(),
  at timestamptz default clock_timestamp(), op text);
create function log_with_defaults() returns trigger language plpgsql as $$
begin
  insert into account_numbered_log (account_id, op) values (new.id, tg_op);
  return null;
end $$;
-- = retire: appends-to-log
-- Because: volatile defaults that only number and stamp.
create trigger log_with_defaults after insert on account for each row execute function log_with_defaults();
create function short_code() returns text language plpgsql volatile as $$
begin
  return substr(md5(random()::text), 1, 8);
end $$;
create table account_coded_log (code text default short_code(), account_id int, op text);
create function log_with_code() returns trigger language plpgsql as $$
begin
  insert into account_coded_log (account_id, op) values (new.id, tg_op);
  return null;
end $$;
-- = retire: appends-to-log
-- Because: the default's function is volatile and yet only makes a word.
create trigger log_with_code after insert on account for each row execute function log_with_code();

-- Looks like business, only appends. ----------------------------------------------------------------------------------------
create table invoice (id int primary key, total numeric, credit_limit numeric, state text);
create table credit_audit_log (invoice_id int, total numeric, credit_limit numeric, at timestamptz default now());
create function enforce_credit_limit() returns trigger language plpgsql as $$
begin
  if new.total > new.credit_limit then
    insert into credit_audit_log (invoice_id, total, credit_limit) values (new.id, new.total, new.credit_limit);
  end if;
  return new;
end $$;
-- = retire: appends-to-log
-- Because: its name promises to enforce; it only writes down.
create trigger enforce_credit_limit before insert or update on invoice for each row execute function enforce_credit_limit();
create function validate_state() returns trigger language plpgsql as $$
declare
  allowed constant text[] := array['draft', 'sent', 'paid'];
  was_ok boolean := false;
begin
  was_ok := new.state = any (allowed);
  if not was_ok then
    insert into credit_audit_log (invoice_id, total) values (new.id, new.total);
    raise notice 'state % is unusual', new.state;
  end if;
  return null;
end $$;
-- = retire: appends-to-log
-- Because: a NOTICE refuses nothing.
create trigger validate_state after update on invoice for each row execute function validate_state();
create function prevent_total_change() returns trigger language plpgsql as $$
begin
  if tg_op = 'TRUNCATE' then
    raise exception 'no truncating of invoices';
  elsif new.total <> old.total then
    insert into credit_audit_log (invoice_id, total) values (new.id, new.total - old.total);
  end if;
  return null;
end $$;
-- = retire: appends-to-log
-- Because: its refusal is for TRUNCATE, for which it is not made here.
create trigger prevent_total_change after update on invoice for each row execute function prevent_total_change();
-- = keep: raises
-- Because: the same function, made for TRUNCATE.
create trigger prevent_truncate before truncate on invoice for each statement execute function prevent_total_change();
