-- A few years of business in a few thousand rows, laid before the triggers exist: what they would have derived is
-- derived here. The setting demo.seed makes the rows, and so do their ids: the same seed, the same database.

create function pg_temp.id(kind text, n bigint) returns uuid language sql stable as $$
  select md5(current_setting('demo.seed') || '/' || kind || '/' || n)::uuid
$$;

-- A number from 0 to ceiling - 1 that looks like chance.
create function pg_temp.pick(kind text, n bigint, ceiling bigint) returns bigint language sql stable as $$
  select ('x' || substr(md5(kind || current_setting('demo.seed') || '#' || n), 1, 12))::bit(48)::bigint % ceiling
$$;

insert into public.platform_statistics (scope) values ('platform');

-- 1 to 40 run the platform and its projects, 41 to 260 invest, 261 to 300 only look.
insert into public.users (id, email, full_name, role, status, phone, preferences, tags, created_at, updated_at)
select pg_temp.id('user', n), 'user' || n || '@example.org',
       (array['Ada', 'Ben', 'Chiara', 'Dmitri', 'Elif', 'Farid', 'Greta', 'Hugo', 'Ines', 'Jonas'])[1 + n % 10]
         || ' ' || (array['Albrecht', 'Bauer', 'Castro', 'Dogan', 'Eklund', 'Fabre', 'Grimm'])[1 + n % 7] || ' ' || n,
       case when n <= 5 then 'admin' when n <= 40 then 'issuer' when n <= 260 then 'investor' else 'viewer' end::public.user_role,
       'active', '+49 30 ' || 100000 + n, jsonb_build_object('language', 'en', 'digest', n % 2 = 0, 'columns', 4 + n % 5),
       array['since-' || 2019 + n % 6], now() - n * interval '2 days', now() - n * interval '1 day'
  from generate_series(1, 300) n;

-- 1 to 50 are in business, 51 to 70 are drafts.
insert into public.projects (id, owner_id, code, name, description, status, target_amount, launch_date, tags, metadata, search)
select pg_temp.id('project', n), pg_temp.id('user', 1 + n % 40), 'P-' || lpad(n::text, 4, '0'), name, description,
       case when n <= 50 then 'active' else 'draft' end::public.project_status,
       100000 * (1 + pg_temp.pick('target', n, 50)), date '2023-01-01' + n::integer, tags,
       jsonb_build_object('isin', 'DE000' || 100000 + n, 'risk_class', 1 + n % 7, 'sector', tags[1]),
       setweight(to_tsvector('simple', name), 'A') || setweight(to_tsvector('simple', description), 'B')
         || setweight(to_tsvector('simple', array_to_string(tags, ' ')), 'C')
  from (
    select n, 'Project ' || n as name, 'Issue number ' || n || ' of the platform, with a prospectus and a trustee.' as description,
           array[(array['housing', 'solar', 'forest', 'hotel'])[1 + n % 4], 'eu'] as tags
      from generate_series(1, 70) n
  ) p;

insert into public.project_settings (project_id, project_name, visibility, features, allowed_countries, minimum_ticket)
select p.id, p.name, case p.status when 'active' then 'public' else 'private' end,
       '{"secondary_market": false, "auto_confirm": false, "documents": true}', array['DE', 'AT', 'FR'], 500
  from public.projects p;

insert into public.investor_groups (id, project_id, name, member_limit, criteria)
select pg_temp.id('group', n), pg_temp.id('project', 1 + n % 50), 'Circle ' || n, 50 + n, jsonb_build_object('min_ticket', 1000 * n)
  from generate_series(1, 40) n;

insert into public.bulk_operations (id, initiated_by, kind, status, total_rows, processed_rows, finished_at)
select pg_temp.id('bulk', n), pg_temp.id('user', n), 'investor import', 'completed', 30, 30, now() - n * interval '9 days'
  from generate_series(1, 5) n;

-- 1 to 220 are people with an account, 221 to 370 came in by import.
insert into public.investors
  (id, user_id, group_id, bulk_operation_id, display_name, email, kyc_status, country, risk_score, accredited_until, profile)
select pg_temp.id('investor', n),
       case when n <= 220 then pg_temp.id('user', 40 + n) end,
       case when n % 3 = 0 then pg_temp.id('group', 1 + n % 40) end,
       case when n > 220 then pg_temp.id('bulk', 1 + n % 5) end,
       'Investor ' || n, 'investor' || n || '@example.org',
       case when n <= 220 then 'approved' else 'pending' end::public.kyc_status,
       (array['DE', 'AT', 'FR', 'IT', 'NL'])[1 + n % 5], round(pg_temp.pick('risk', n, 10000) / 100.0, 2),
       date '2027-01-01' + n::integer, jsonb_build_object('occupation', 'engineer', 'experience', n % 9)
  from generate_series(1, 370) n;

insert into public.token_templates (id, created_by, name, standard, version, blocks)
select pg_temp.id('template', n), pg_temp.id('user', n), 'Template ' || n,
       (array['erc20', 'erc1400', 'erc3643'])[1 + n % 3]::public.token_standard, 1,
       jsonb_build_object('transfer', jsonb_build_array('whitelist', 'lockup'), 'burnable', n % 2 = 0)
  from generate_series(1, 12) n;

insert into public.tokens (id, project_id, template_id, symbol, name, total_supply, config)
select pg_temp.id('token', n), pg_temp.id('project', n), pg_temp.id('template', 1 + n % 12), 'TK' || n, 'Token of project ' || n,
       10000000, jsonb_build_object('lockup_days', 30 * (n % 6), 'chain', 'polygon')
  from generate_series(1, 50) n;

insert into public.subscriptions (id, project_id, investor_id, amount, status, created_at)
select pg_temp.id('subscription', n), pg_temp.id('project', 1 + pg_temp.pick('sp', n, 50)),
       pg_temp.id('investor', 1 + pg_temp.pick('si', n, 220)), 500 + 25 * pg_temp.pick('sa', n, 400),
       case when n <= 250 then 'confirmed' when n <= 300 then 'cancelled' else 'submitted' end::public.subscription_status,
       now() - n * interval '5 hours'
  from generate_series(1, 400) n;

insert into public.investments (id, subscription_id, project_id, investor_id, amount, unit_price, units, status)
select pg_temp.id('investment', n), s.id, s.project_id, s.investor_id, s.amount, 12.5, round(s.amount / 12.5, 6),
       case when n % 5 = 0 then 'closed' else 'open' end
  from generate_series(1, 250) n join public.subscriptions s on s.id = pg_temp.id('subscription', n);

insert into public.token_allocations (id, token_id, investor_id, amount, vests_on, conditions)
select pg_temp.id('allocation', n), pg_temp.id('token', 1 + pg_temp.pick('at', n, 50)),
       pg_temp.id('investor', 1 + pg_temp.pick('ai', n, 220)), 10 + pg_temp.pick('aa', n, 990), date '2026-06-01' + n::integer,
       case when n % 4 = 0 then array['lockup', 'kyc'] else '{}' end
  from generate_series(1, 300) n;
update public.tokens t
   set allocated_supply = a.amount
  from (select token_id, sum(amount) as amount from public.token_allocations group by 1) a
 where a.token_id = t.id;

insert into public.token_operations (token_id, operator_id, kind, amount, status, payload)
select pg_temp.id('token', 1 + n % 50), pg_temp.id('user', 1 + n % 40), (array['mint', 'lock', 'unlock', 'transfer'])[1 + n % 4],
       10 + n, 'settled', jsonb_build_object('tx', md5(n::text))
  from generate_series(1, 200) n;

insert into public.distributions (id, project_id, investor_id, amount, status, scheduled_on, paid_at)
select pg_temp.id('distribution', n), pg_temp.id('project', 1 + n % 50), pg_temp.id('investor', 1 + n % 220), 10 + n,
       case when n <= 100 then 'paid' else 'scheduled' end::public.payment_status, date '2026-01-01' + n::integer,
       case when n <= 100 then now() - n * interval '1 hour' end
  from generate_series(1, 160) n;

insert into public.wallets (id, investor_id, address, allowed_ips)
select pg_temp.id('wallet', n), pg_temp.id('investor', n), '0x' || md5('wallet' || n) || substr(md5(n::text), 1, 8), array['10.0.0.0/8'::inet]
  from generate_series(1, 220) n;
insert into public.wallet_transactions (wallet_id, direction, amount, status, memo)
select pg_temp.id('wallet', n), d.direction, d.amount, 'settled', 'opening'
  from generate_series(1, 220) n
 cross join (values ('credit'::public.direction, 50000), ('debit', 1000), ('credit', 250)) d (direction, amount);
update public.wallets w
   set balance = t.balance
  from (
    select wallet_id, sum(case direction when 'credit' then amount else -amount end) as balance
      from public.wallet_transactions group by 1
  ) t
 where t.wallet_id = w.id;

insert into public.redemptions (id, token_id, investor_id, amount, status, reason, decided_at)
select pg_temp.id('redemption', n), pg_temp.id('token', 1 + n % 50), pg_temp.id('investor', 1 + n % 220), 100 + n,
       case when n <= 30 then 'approved' else 'requested' end::public.redemption_status, 'needs cash',
       case when n <= 30 then now() - n * interval '1 day' end
  from generate_series(1, 60) n;

insert into public.documents (id, project_id, uploaded_by, title, kind, storage_path, keywords, search, signed_at)
select pg_temp.id('document', n), pg_temp.id('project', 1 + n % 50), pg_temp.id('user', 1 + n % 40), 'Document ' || n,
       (array['contract', 'prospectus', 'report', 'other'])[1 + n % 4], 'documents/' || n || '.pdf', array['year-' || 2020 + n % 5],
       to_tsvector('simple', 'Document ' || n || ' year-' || 2020 + n % 5), case when n % 10 = 0 then now() end
  from generate_series(1, 200) n;

insert into public.notifications (user_id, kind, reference_id, title, read_at)
select i.user_id, 'subscription.confirmed', s.id::text, 'Your subscription is confirmed', case when pg_temp.pick('read', row_number() over (), 2) = 0 then now() end
  from public.subscriptions s join public.investors i on i.id = s.investor_id
 where s.status = 'confirmed'
union all
select p.owner_id, 'subscription.received', s.id::text, 'New subscription to ' || p.name, null
  from public.subscriptions s join public.projects p on p.id = s.project_id
 where s.status = 'submitted';

update public.platform_statistics
   set users_total = (select count(*) from public.users),
       projects_total = (select count(*) from public.projects),
       investors_total = (select count(*) from public.investors),
       token_operations_total = (select count(*) from public.token_operations),
       subscriptions_total = (select count(*) from public.subscriptions),
       subscribed_amount = (select sum(amount) from public.subscriptions),
       confirmed_amount = (select sum(amount) from public.subscriptions where status = 'confirmed'),
       investments_total = (select count(*) from public.investments),
       invested_amount = (select sum(amount) from public.investments),
       wallet_transactions_total = (select count(*) from public.wallet_transactions),
       wallet_volume = (select sum(amount) from public.wallet_transactions)
 where scope = 'platform';

insert into public.platform_statistics (scope, users_total, projects_total, investors_total, updated_at)
select 'day ' || (date '2023-01-01' + n), 20 + n / 5, 5 + n / 20, 25 + n / 4, timestamptz '2023-01-02 00:00+00' + n * interval '1 day'
  from generate_series(1, 1200) n;

drop function pg_temp.id(text, bigint);
drop function pg_temp.pick(text, bigint, bigint);
analyze;
