-- name: read_owners
-- Whose project each one is.
select id::text as a, owner_id::text as b from public.projects;

-- name: read_accounts
-- Which user an investor is.
select id::text as a, user_id::text as b from public.investors where user_id is not null;

-- name: read_issues
-- Which project a token belongs to.
select id::text as a, project_id::text as b from public.tokens;

-- name: read_people
-- Investors with an account and money in a wallet, in no particular order that is always the same.
select i.id::text as investor, i.user_id::text as "user", min(w.id::text) as wallet
  from public.investors i
  join public.wallets w on w.investor_id = i.id
 where i.user_id is not null
   and w.balance > 0
 group by i.id, i.user_id
 order by md5(i.id::text);

-- name: read_things
-- What there is to work on: the name of a list, and an identifier in it.
select 'admins' as list, id::text from public.users where role = 'admin'
union all
select 'viewers', id::text from public.users where role = 'viewer'
union all
select case status when 'draft' then 'drafts' else 'projects' end, id::text from public.projects where status <> 'closed'
union all
select 'groups', id::text from public.investor_groups
union all
(select 'imported', id::text from public.investors where user_id is null limit 5000)
union all
select 'tokens', id::text from public.tokens where allocated_supply > 0
union all
select 'submitted', id::text from public.subscriptions where status = 'submitted'
union all
select 'investments', id::text from public.investments
union all
select 'allocations', id::text from public.token_allocations
union all
select 'operations', id::text from public.token_operations
union all
select status::text, id::text from public.distributions where status in ('scheduled', 'paid')
union all
select 'requested', id::text from public.redemptions where status = 'requested'
union all
select case when signed_at is null then 'documents' else 'signed' end, id::text from public.documents
order by 1, 2;

-- name: read_unread
-- A user's oldest unread notifications that nobody else is reading.
select * from public.notifications
 where user_id = :user and read_at is null
 order by created_at, id limit 4
   for update skip locked;

-- name: read_oldest
-- A user's oldest notifications that nobody else is reading.
select * from public.notifications where user_id = :user order by created_at, id limit 3 for update skip locked;

-- name: read_token_of
-- The token that an allocation is of.
select token_id from public.token_allocations where id = :allocation;

-- name: bump_missing_document
-- An UPDATE that finds nothing.
update public.documents set version = version + 1 where id = :nobody;

-- name: delete_missing_subscription
-- A DELETE that finds nothing.
delete from public.subscriptions where id = :nobody;

-- name: open_request
-- Who is acting, as PostgREST says it, for this transaction.
select set_config('request.jwt.claims', :claims, true), pg_current_xact_id()::text as xid;

-- name: open_stamped_request
-- The same, and said into the WAL as well.
select set_config('request.jwt.claims', :claims, true), pg_current_xact_id()::text as xid,
       pg_logical_emit_message(true, :prefix, :context);

-- name: read_counters
-- The statistics, the balance brought forward.
select s.* from public.platform_statistics s where s.scope = 'platform';

-- name: read_notices
-- Who has been notified of what, and how often.
select user_id::text as "user", kind, reference_id as reference, count(*)::integer as times
  from public.notifications
 group by 1, 2, 3;

-- name: read_last_notification
-- The newest notification.
select coalesce(max(id), 0) as id from public.notifications;

-- name: read_progress
-- How far each bulk operation is.
select id::text as operation, processed_rows as rows from public.bulk_operations;

-- name: read_position
-- Where the WAL is, and the next transaction id.
select pg_current_wal_insert_lsn()::text as lsn, pg_snapshot_xmax(pg_current_snapshot())::text as xid;

-- name: read_era
-- An era ends when, and only when, the server crashes (statistics begin anew); and the xid that was next at the last checkpoint, which after a crash is the one that ended recovery.
select b.stats_reset::text as era,
       (split_part(c.next_xid, ':', 1)::bigint << 32) | split_part(c.next_xid, ':', 2)::bigint as recovered
  from pg_stat_bgwriter b
 cross join pg_control_checkpoint() c;

-- name: read_outcome
-- What became of a transaction.
select pg_xact_status(:xid::text::xid8) as status;
