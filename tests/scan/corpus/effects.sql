-- Effects outside the row: some may follow after the commit, some somebody depends on at once.

-- Counters. ------------------------------------------------------------------------------------------------------------
create schema ext;
create schema cnt;
create table cnt.post (id int primary key, comments_count int not null default 0, likes int not null default 0 check (likes >= 0));
create table cnt.comment (id int primary key, post_id int references cnt.post, body text);
create table cnt.likes (id int primary key, post_id int references cnt.post);
create table cnt.daily (day date primary key, n int not null);
create materialized view cnt.totals as select count(*) from cnt.comment;
create function cnt.count_comments() returns trigger language plpgsql as $$
begin
  if tg_op = 'INSERT' then
    update cnt.post set comments_count = comments_count + 1 where id = new.post_id;
  elsif tg_op = 'DELETE' then
    update cnt.post set comments_count = comments_count - 1 where id = old.post_id;
  elsif old.post_id is distinct from new.post_id then
    update cnt.post set comments_count = comments_count - 1 where id = old.post_id;
    update cnt.post set comments_count = comments_count + 1 where id = new.post_id;
  end if;
  return null;
end $$;
-- = defer: writes-other-table
create trigger counter_cache after insert or update or delete on cnt.comment for each row execute function cnt.count_comments();
create function cnt.count_likes() returns trigger language plpgsql as $$
begin
  update cnt.post set likes = likes + case tg_op when 'INSERT' then 1 else -1 end where id = coalesce(new.post_id, old.post_id);
  return null;
end $$;
-- = keep: enforced-target
create trigger checked_counter after insert or delete on cnt.likes for each row execute function cnt.count_likes();
create function cnt.count_day() returns trigger language plpgsql as $$
begin
  insert into cnt.daily as d values (current_date, 1) on conflict (day) do update set n = d.n + 1;
  return null;
end $$;
-- = defer: writes-other-table
create trigger daily after insert on cnt.comment for each row execute function cnt.count_day();
create function cnt.merge_day() returns trigger language plpgsql as $$
begin
  merge into cnt.daily d using (select current_date as day, count(*) as n from fresh) f on d.day = f.day
   when matched then update set n = d.n + f.n
   when not matched then insert (day, n) values (f.day, f.n);
  return null;
end $$;
-- = defer: writes-other-table
create trigger merged after insert on cnt.likes referencing new table as fresh for each statement execute function cnt.merge_day();
create function cnt.refresh() returns trigger language plpgsql as $$
begin
  refresh materialized view cnt.totals;
  return null;
end $$;
-- = defer: writes-other-table
create trigger totals after insert on cnt.comment for each statement execute function cnt.refresh();

-- Messages. --------------------------------------------------------------------------------------------------------------
create schema msg;
create extension dblink schema ext;
create extension tcn schema ext;
create table msg.account (id int primary key, email text, plan text);
create table msg.outbox (id bigserial primary key, topic text, payload jsonb, created_at timestamptz default now());
create table msg.domain_events (id bigserial primary key, kind text, payload jsonb);
create table msg.sync_queue (op text, t text, id int);
create table msg.inbox_log (id bigserial primary key, account_id int, body text, read_at timestamptz);
create schema net;
create function net.http_post(url text, body jsonb) returns bigint language c as '$libdir/dblink', 'dblink_connect';
create function msg.to_outbox() returns trigger language plpgsql as $$
begin
  insert into msg.outbox (topic, payload) values ('account', to_jsonb(new));
  perform pg_notify('outbox', '');
  return null;
end $$;
-- = defer: writes-other-table
create trigger outbox after insert on msg.account for each row execute function msg.to_outbox();
create function msg.to_events() returns trigger language plpgsql as $$
begin
  insert into msg.domain_events (kind, payload) values (tg_op, to_jsonb(new));
  return null;
end $$;
-- = defer: writes-other-table
create trigger events after insert on msg.account for each row execute function msg.to_events();
create function msg.to_queue() returns trigger language plpgsql as $$
begin
  insert into msg.sync_queue values (tg_op, tg_table_name, new.id);
  return null;
end $$;
-- = defer: writes-other-table
create trigger queue after insert on msg.account for each row execute function msg.to_queue();
create function msg.to_inbox() returns trigger language plpgsql as $$
begin
  insert into msg.inbox_log (account_id, body) values (new.id, 'welcome');
  return null;
end $$;
-- = defer: writes-other-table
create trigger inbox after insert on msg.account for each row execute function msg.to_inbox();
create function msg.ring() returns trigger language plpgsql as $$
begin
  notify accounts, 'changed';
  return null;
end $$;
-- = defer: notifies
create trigger ring after update on msg.account for each statement execute function msg.ring();
-- = defer: notifies
create trigger tcn after update on msg.account for each row execute function ext.triggered_change_notification();
create function msg.webhook() returns trigger language plpgsql as $$
begin
  perform net.http_post('https://hooks.example.org', jsonb_build_object('id', new.id));
  return new;
end $$;
-- = defer: calls-out
create trigger webhook after insert on msg.account for each row execute function msg.webhook();
create function msg.autonomous() returns trigger language plpgsql as $$
begin
  perform ext.dblink_exec('dbname=logs', 'insert into audit values (1)');
  return new;
end $$;
-- = review: writes-on-its-own-connection
create trigger autonomous before update on msg.account for each row execute function msg.autonomous();
create function msg.to_server_log() returns trigger language plpgsql as $$
begin
  raise log 'account % changed', new.id;
  return null;
end $$;
-- = defer: writes-server-log
create trigger server_log after update on msg.account for each row execute function msg.to_server_log();

-- Copies. ---------------------------------------------------------------------------------------------------------------------
create schema cpy;
create table cpy.author (id int primary key, name text, email text);
create table cpy.book (id int primary key, author_id int, author_name text);
create table cpy.author_search (author_id int primary key, words text);
create table cpy.login (author_id int primary key, email text unique);
create table cpy.profile (id int primary key, name text);
create table cpy.follower (profile_id int references cpy.profile);
create table cpy.wall (author_id int, greeting text);
create function cpy.copy_name() returns trigger language plpgsql as $$
begin
  update cpy.book set author_name = new.name where author_id = new.id;
  return new;
end $$;
-- = defer: writes-other-table
create trigger copy_name after update of name on cpy.author for each row execute function cpy.copy_name();
create function cpy.index_author() returns trigger language plpgsql as $$
begin
  insert into cpy.author_search (author_id, words) values (new.id, lower(new.name))
  on conflict (author_id) do update set words = excluded.words;
  return new;
end $$;
-- = defer: writes-other-table
create trigger index_author after insert or update on cpy.author for each row execute function cpy.index_author();
create function cpy.copy_email() returns trigger language plpgsql as $$
begin
  update cpy.login set email = new.email where author_id = new.id;
  return new;
end $$;
-- = keep: enforced-target
create trigger copy_unique_email after update on cpy.author for each row execute function cpy.copy_email();
create function cpy.make_profile() returns trigger language plpgsql security definer as $$
begin
  insert into cpy.profile (id, name) values (new.id, new.name);
  return new;
end $$;
-- = keep: feeds-a-foreign-key
create trigger on_author_created after insert on cpy.author for each row execute function cpy.make_profile();
create function cpy.greet() returns trigger language plpgsql security definer as $$
begin
  insert into cpy.wall (author_id, greeting) values (new.id, 'hello ' || new.name);
  return new;
end $$;
-- = defer: writes-other-table
create trigger greet after insert on cpy.author for each row execute function cpy.greet();

-- Clearing up. ----------------------------------------------------------------------------------------------------------------
create schema clr;
create table clr.parent (id int primary key);
create table clr.child (id int primary key, parent_id int references clr.parent);
create table clr.loose (id int primary key, parent_id int);
create table clr.deleted_records (id bigserial, table_name text, record_id int, status int default 1, consume_after timestamptz);
create function clr.clear_children() returns trigger language plpgsql as $$
begin
  delete from clr.child where parent_id = old.id;
  return old;
end $$;
-- = keep: feeds-a-foreign-key
create trigger clear_children before delete on clr.parent for each row execute function clr.clear_children();
create function clr.clear_loose() returns trigger language plpgsql as $$
begin
  delete from clr.loose where parent_id = old.id;
  return null;
end $$;
-- = defer: writes-other-table
create trigger clear_loose after delete on clr.parent for each row execute function clr.clear_loose();
create function clr.remember() returns trigger language plpgsql as $$
begin
  insert into clr.deleted_records (table_name, record_id) select tg_table_name, gone.id from gone;
  return null;
end $$;
-- = defer: writes-other-table
create trigger loose_foreign_keys after delete on clr.parent
  referencing old table as gone for each statement execute function clr.remember();

-- Logs that are more than logs. -------------------------------------------------------------------------------------------------
create schema more;
create table more.deal (id int primary key, state text);
create table more.acked_log (id bigserial primary key, deal_id int, who text);
create function more.acknowledge(i bigint) returns void language plpgsql as $$
begin
  update more.acked_log set who = current_user where id = i;
end $$;
create function more.to_acked() returns trigger language plpgsql as $$
begin
  insert into more.acked_log (deal_id) values (new.id);
  return null;
end $$;
-- = defer: writes-other-table
create trigger acked after insert on more.deal for each row execute function more.to_acked();
create table more.parent_log (id bigserial primary key, deal_id int);
create table more.annotation (log_id bigint references more.parent_log, note text);
create function more.to_parent() returns trigger language plpgsql as $$
begin
  insert into more.parent_log (deal_id) values (new.id);
  return null;
end $$;
-- = defer: writes-other-table
create trigger referenced after insert on more.deal for each row execute function more.to_parent();
create table more.chain_log (id bigserial primary key, deal_id int, hash text);
create function more.to_chain() returns trigger language plpgsql as $$
declare
  last text;
begin
  select hash into last from more.chain_log order by id desc limit 1;
  insert into more.chain_log (deal_id, hash) values (new.id, md5(last || new.id));
  return null;
end $$;
-- = defer: writes-other-table
create trigger chained after insert on more.deal for each row execute function more.to_chain();
create table more.hashed_log (id bigserial primary key, deal_id int, hash text);
create function more.hash_row() returns trigger language plpgsql as $$
begin
  new.hash := md5(new.deal_id::text);
  return new;
end $$;
-- = keep: changes-new
create trigger hashes before insert on more.hashed_log for each row execute function more.hash_row();
create function more.to_hashed() returns trigger language plpgsql as $$
begin
  insert into more.hashed_log (deal_id) values (new.id);
  return null;
end $$;
-- = defer: writes-other-table
create trigger hashed after insert on more.deal for each row execute function more.to_hashed();
create table more.decision_log (id bigserial primary key, deal_id int, state text);
create function more.to_decisions() returns trigger language plpgsql as $$
begin
  insert into more.decision_log (deal_id, state) values (new.id, new.state);
  return null;
end $$;
create function more.approve(d int) returns bigint language plpgsql as $$
declare
  written bigint;
begin
  update more.deal set state = 'approved' where id = d;
  select max(id) into written from more.decision_log where deal_id = d;
  return written;
end $$;
-- = keep: reads-own-write
create trigger decided after update on more.deal for each row execute function more.to_decisions();
create table more.last_activity (deal_id int primary key, at timestamptz);
create function more.touch_activity() returns trigger language plpgsql as $$
begin
  insert into more.last_activity values (new.id, now()) on conflict (deal_id) do update set at = excluded.at;
  return null;
end $$;
-- = defer: writes-other-table
create trigger last_activity after update on more.deal for each row execute function more.touch_activity();
create table more.limit_log (id bigserial primary key, deal_id int, at timestamptz default now());
create function more.to_limited() returns trigger language plpgsql as $$
begin
  insert into more.limit_log (deal_id) values (new.id);
  return null;
end $$;
-- = keep: feeds-a-keeper
create trigger limited_log after insert on more.deal for each row execute function more.to_limited();
create function more.limit_rate() returns trigger language plpgsql as $$
begin
  if (select count(*) from more.limit_log where at > now() - interval '1 minute') > 10 then
    raise exception 'too fast';
  end if;
  return new;
end $$;
-- = keep: raises
create trigger limit_rate before insert on more.deal for each row execute function more.limit_rate();

-- Money: what others decide on. -----------------------------------------------------------------------------------------------
create schema bank;
create table bank.account (id int primary key, balance numeric not null default 0, frozen boolean default false, held numeric default 0);
create table bank.entry (id bigserial primary key, account_id int, amount numeric);
create table bank.booking (id int primary key, account_id int, amount numeric);
create table bank.fee (id int primary key, account_id int, amount numeric);
create table bank.hold (id int primary key, account_id int, amount numeric);
create table bank.card (id int primary key, account_id int, credit numeric);
create function bank.guard_balance() returns trigger language plpgsql as $$
begin
  if new.balance < 0 then
    raise exception 'overdrawn' using errcode = 'check_violation';
  end if;
  return new;
end $$;
-- = keep: raises
create trigger guard_balance before update on bank.account for each row execute function bank.guard_balance();
create function bank.post_entry() returns trigger language plpgsql as $$
begin
  update bank.account set balance = balance + new.amount where id = new.account_id;
  return null;
end $$;
-- = keep: enforced-target
create trigger post_entry after insert on bank.entry for each row execute function bank.post_entry();
create function bank.book() returns trigger language plpgsql as $$
begin
  insert into bank.entry (account_id, amount) values (new.account_id, -new.amount);
  return null;
end $$;
-- = keep: sets-off-a-keeper
create trigger book after insert on bank.booking for each row execute function bank.book();
create function bank.hold() returns trigger language plpgsql as $$
begin
  update bank.account set held = held + new.amount where id = new.account_id;
  return null;
end $$;
-- = keep: feeds-a-keeper
create trigger hold after insert on bank.hold for each row execute function bank.hold();
create function bank.derive_credit() returns trigger language plpgsql as $$
declare
  of_account record;
begin
  select balance, held into of_account from bank.account where id = new.account_id;
  new.credit := of_account.balance - of_account.held;
  return new;
end $$;
-- = keep: changes-new
create trigger derive_credit before insert on bank.card for each row execute function bank.derive_credit();

create schema uniq;
create table uniq.thing (id int primary key, name text, during int4range);
create table uniq.taken_name (name text primary key);
create table uniq.calendar (thing_id int, during int4range, exclude using gist (during with &&));
create function uniq.take_name() returns trigger language plpgsql as $$
begin
  insert into uniq.taken_name (name) values (new.name);
  return null;
end $$;
-- = keep: enforced-target
create trigger take_name after insert on uniq.thing for each row execute function uniq.take_name();
create function uniq.reserve() returns trigger language plpgsql as $$
begin
  insert into uniq.calendar values (new.id, new.during);
  return null;
end $$;
-- = keep: enforced-target
create trigger reserve after insert on uniq.thing for each row execute function uniq.reserve();

-- Row security that looks at what a trigger writes. -----------------------------------------------------------------------------
create schema rls;
create table rls.team (id int primary key, owner text);
create table rls.member (team_id int, who text);
create table rls.note (id int primary key, team_id int);
create function rls.is_member(team int) returns boolean language sql stable security definer as $$
  select exists (select from rls.member m where m.team_id = team and m.who = current_user)
$$;
alter table rls.note enable row level security;
create policy members on rls.note using (rls.is_member(team_id));
create function rls.add_owner() returns trigger language plpgsql as $$
begin
  insert into rls.member values (new.id, new.owner);
  return null;
end $$;
-- = keep: feeds-a-policy
create trigger add_owner after insert on rls.team for each row execute function rls.add_owner();

-- Statements that write more than one thing. ------------------------------------------------------------------------------------
create schema multi;
create table multi.lead (id int primary key, score int);
create table multi.lead_audit (id int, op text);
create table multi.stage (lead_id int, n int);
create function multi.log_and_count() returns trigger language plpgsql as $$
begin
  with moved as (update multi.stage set n = n + 1 where lead_id = new.id returning lead_id)
  insert into multi.lead_audit select lead_id, tg_op from moved;
  return null;
end $$;
-- = defer: writes-other-table
create trigger log_and_count after update on multi.lead for each row execute function multi.log_and_count();

-- Named like the past, and yet what the application is about. ---------------------------------------------------------------------
create schema past;
create table past.invoice (id int primary key, amount numeric, customer int);
create table past.journal_entries (invoice_id int, account text, debit numeric, credit numeric);
create table past.activities (id bigserial, actor int, verb text, object int);
create table past.event_log (id bigserial, op text, t text, row_data jsonb);
create table past.message_log (id bigserial, payload jsonb);
create table past.published_audit (id bigserial, op text, row_data jsonb);
create publication past_subscribers for table past.published_audit;
create table past.ruled_log (id bigserial, op text);
create table past.counted (n int);
create rule count_logs as on insert to past.ruled_log do also update past.counted set n = n + 1;
create table past.number (last int);
create function past.next_number() returns int language sql as $$ update past.number set last = last + 1 returning last $$;
create table past.numbered_log (no int default past.next_number(), op text);
create function past.post() returns trigger language plpgsql as $$
begin
  insert into past.journal_entries values (new.id, 'receivable', new.amount, 0), (new.id, 'revenue', 0, new.amount);
  return null;
end $$;
-- = defer: writes-other-table
create trigger post after insert on past.invoice for each row execute function past.post();
create function past.feed() returns trigger language plpgsql as $$
begin
  insert into past.activities (actor, verb, object) values (new.customer, 'invoiced', new.id);
  return null;
end $$;
-- = defer: writes-other-table
create trigger feed after insert on past.invoice for each row execute function past.feed();
create function past.to_event_log() returns trigger language plpgsql as $$
begin
  insert into past.event_log (op, t, row_data) values (tg_op, tg_table_name, to_jsonb(new));
  return null;
end $$;
-- = retire: appends-to-log
create trigger to_event_log after insert on past.invoice for each row execute function past.to_event_log();
create function past.to_message_log() returns trigger language plpgsql as $$
begin
  insert into past.message_log (payload) values (to_jsonb(new));
  return null;
end $$;
-- = defer: writes-other-table
create trigger to_message_log after insert on past.invoice for each row execute function past.to_message_log();
create function past.to_published() returns trigger language plpgsql as $$
begin
  insert into past.published_audit (op, row_data) values (tg_op, to_jsonb(new));
  return null;
end $$;
-- = defer: writes-other-table
create trigger to_published after insert on past.invoice for each row execute function past.to_published();
create function past.to_ruled() returns trigger language plpgsql as $$
begin
  insert into past.ruled_log (op) values (tg_op);
  return null;
end $$;
-- = defer: writes-other-table
create trigger to_ruled after insert on past.invoice for each row execute function past.to_ruled();
create function past.to_numbered() returns trigger language plpgsql as $$
begin
  insert into past.numbered_log (op) values (tg_op);
  return null;
end $$;
-- = defer: writes-other-table
create trigger to_numbered after insert on past.invoice for each row execute function past.to_numbered();

-- A guard that looks at a view of what a trigger writes. ------------------------------------------------------------------------
create schema seen;
create table seen.purchase (id int primary key, customer int, amount numeric);
create table seen.spent (customer int, total numeric);
create table seen.spent_log (customer int, amount numeric, op text);
create view seen.big_spender as select customer from seen.spent where total > 1000;
create function seen.add_up() returns trigger language plpgsql as $$
begin
  update seen.spent set total = total + new.amount where customer = new.customer;
  return null;
end $$;
-- = keep: feeds-a-keeper
create trigger add_up after insert on seen.purchase for each row execute function seen.add_up();
create function seen.limit_spending() returns trigger language plpgsql as $$
declare
  big boolean;
begin
  perform 1 from seen.big_spender b where b.customer = new.customer;
  big := found;
  if big then
    raise exception 'enough';
  end if;
  return new;
end $$;
-- = keep: raises
create trigger limit_spending before insert on seen.purchase for each row execute function seen.limit_spending();
