-- The legacy application: a platform on which projects issue tokens and investors subscribe to them.
-- Eighteen tables, the two logs that its triggers write, and the statistics that its front page shows.

create schema auth;

-- Who is calling: the subject of the request's token, as PostgREST hands it over.
create function auth.uid() returns uuid language sql stable as $$
  select nullif(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub', '')::uuid
$$;

create function auth.role() returns text language sql stable as $$
  select coalesce(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role', 'anon')
$$;

create type public.user_role as enum ('admin', 'issuer', 'investor', 'viewer');
create type public.account_status as enum ('invited', 'active', 'suspended');
create type public.project_status as enum ('draft', 'active', 'paused', 'closed');
create type public.kyc_status as enum ('pending', 'in_review', 'approved', 'rejected');
create type public.token_standard as enum ('erc20', 'erc1400', 'erc3643');
create type public.subscription_status as enum ('submitted', 'confirmed', 'cancelled');
create type public.payment_status as enum ('scheduled', 'paid', 'failed');
create type public.redemption_status as enum ('requested', 'approved', 'rejected');
create type public.direction as enum ('credit', 'debit');
create type public.bulk_status as enum ('pending', 'running', 'completed', 'cancelled');

create table public.users (
  id uuid primary key default gen_random_uuid(),
  email text not null unique,
  full_name text not null,
  role public.user_role not null default 'investor',
  status public.account_status not null default 'active',
  phone text,
  last_sign_in_at timestamptz,
  last_sign_in_ip inet,
  preferences jsonb not null default '{}',
  tags text[] not null default '{}',
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);

create table public.projects (
  id uuid primary key default gen_random_uuid(),
  owner_id uuid not null references public.users,
  code text not null unique,
  name text not null,
  description text not null default '',
  status public.project_status not null default 'draft',
  target_amount numeric(18, 2) not null,
  launch_date date,
  tags text[] not null default '{}',
  metadata jsonb not null default '{}',
  search tsvector,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create index on public.projects (owner_id);
create index on public.projects using gin (search);

create table public.project_settings (
  project_id uuid primary key references public.projects on delete cascade,
  project_name text not null,
  visibility text not null default 'private',
  features jsonb not null default '{}',
  allowed_countries text[] not null default '{}',
  minimum_ticket numeric(18, 2),
  updated_at timestamptz not null default now()
);
comment on column public.project_settings.project_name is 'copied from projects.name, so that the settings page needs no join';

create table public.investor_groups (
  id uuid primary key default gen_random_uuid(),
  project_id uuid not null references public.projects,
  name text not null,
  member_limit integer,
  criteria jsonb not null default '{}',
  created_at timestamptz not null default now()
);
create index on public.investor_groups (project_id);

create table public.bulk_operations (
  id uuid primary key default gen_random_uuid(),
  initiated_by uuid not null references public.users,
  kind text not null,
  status public.bulk_status not null default 'pending',
  total_rows integer not null default 0,
  processed_rows integer not null default 0,
  failed_rows integer not null default 0,
  options jsonb not null default '{}',
  finished_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create index on public.bulk_operations (initiated_by);

create table public.investors (
  id uuid primary key default gen_random_uuid(),
  user_id uuid references public.users,
  group_id uuid references public.investor_groups on delete set null,
  bulk_operation_id uuid references public.bulk_operations,
  display_name text not null,
  email text not null,
  kyc_status public.kyc_status not null default 'pending',
  country char(2),
  risk_score numeric(5, 2),
  accredited_until date,
  profile jsonb not null default '{}',
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create unique index on public.investors (email);
create index on public.investors (user_id);
create index on public.investors (group_id);
create index on public.investors (bulk_operation_id);

create table public.token_templates (
  id uuid primary key default gen_random_uuid(),
  created_by uuid not null references public.users,
  name text not null,
  standard public.token_standard not null,
  version integer not null default 1,
  blocks jsonb not null default '{}',
  is_active boolean not null default true,
  created_at timestamptz not null default now()
);
create index on public.token_templates (created_by);

create table public.tokens (
  id uuid primary key default gen_random_uuid(),
  project_id uuid not null references public.projects,
  template_id uuid references public.token_templates,
  symbol text not null,
  name text not null,
  total_supply numeric(30, 0) not null,
  allocated_supply numeric(30, 0) not null default 0,
  decimals smallint not null default 0,
  config jsonb not null default '{}',
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint tokens_allocated_within_supply check (allocated_supply >= 0 and allocated_supply <= total_supply)
);
create index on public.tokens (project_id);
create index on public.tokens (template_id);

create table public.subscriptions (
  id uuid primary key default gen_random_uuid(),
  project_id uuid not null references public.projects,
  investor_id uuid not null references public.investors,
  amount numeric(18, 2) not null check (amount > 0),
  currency char(3) not null default 'EUR',
  status public.subscription_status not null default 'submitted',
  notes text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create index on public.subscriptions (project_id);
create index on public.subscriptions (investor_id);

create table public.token_allocations (
  id uuid primary key default gen_random_uuid(),
  token_id uuid not null references public.tokens,
  investor_id uuid not null references public.investors,
  amount numeric(30, 0) not null check (amount > 0),
  vests_on date,
  conditions text[] not null default '{}',
  created_at timestamptz not null default now()
);
create index on public.token_allocations (token_id);
create index on public.token_allocations (investor_id);

create table public.token_operations (
  id bigint generated by default as identity primary key,
  token_id uuid not null references public.tokens,
  operator_id uuid not null references public.users,
  kind text not null,
  amount numeric(30, 0) not null,
  status text not null default 'pending',
  payload jsonb not null default '{}',
  created_at timestamptz not null default now()
);
create index on public.token_operations (token_id);
create index on public.token_operations (operator_id);

create table public.investments (
  id uuid primary key default gen_random_uuid(),
  subscription_id uuid not null references public.subscriptions,
  project_id uuid not null references public.projects,
  investor_id uuid not null references public.investors,
  amount numeric(18, 2) not null,
  unit_price numeric(12, 4) not null check (unit_price > 0),
  units numeric(24, 6),
  status text not null default 'open',
  invested_on date not null default current_date,
  created_at timestamptz not null default now()
);
create index on public.investments (subscription_id);
create index on public.investments (project_id);
create index on public.investments (investor_id);

create table public.distributions (
  id uuid primary key default gen_random_uuid(),
  project_id uuid not null references public.projects,
  investor_id uuid not null references public.investors,
  kind text not null default 'dividend',
  amount numeric(18, 2) not null,
  status public.payment_status not null default 'scheduled',
  scheduled_on date not null,
  paid_at timestamptz,
  created_at timestamptz not null default now()
);
create index on public.distributions (project_id);
create index on public.distributions (investor_id);

create table public.redemptions (
  id uuid primary key default gen_random_uuid(),
  token_id uuid not null references public.tokens,
  investor_id uuid not null references public.investors,
  amount numeric(18, 2) not null,
  status public.redemption_status not null default 'requested',
  reason text,
  decided_at timestamptz,
  created_at timestamptz not null default now()
);
create index on public.redemptions (token_id);
create index on public.redemptions (investor_id);

create table public.wallets (
  id uuid primary key default gen_random_uuid(),
  investor_id uuid not null references public.investors,
  address text not null unique,
  network text not null default 'polygon',
  status text not null default 'active',
  balance numeric(20, 2) not null default 0,
  allowed_ips inet[] not null default '{}',
  updated_at timestamptz not null default now(),
  constraint wallets_balance_not_negative check (balance >= 0)
);
create index on public.wallets (investor_id);

create table public.wallet_transactions (
  id bigint not null generated by default as identity,
  wallet_id uuid not null references public.wallets,
  direction public.direction not null,
  amount numeric(20, 2) not null check (amount > 0),
  status text not null default 'pending',
  memo text,
  reference text,
  created_at timestamptz not null default now(),
  primary key (id, wallet_id)
) partition by hash (wallet_id);
create table public.wallet_transactions_p0 partition of public.wallet_transactions for values with (modulus 4, remainder 0);
create table public.wallet_transactions_p1 partition of public.wallet_transactions for values with (modulus 4, remainder 1);
create table public.wallet_transactions_p2 partition of public.wallet_transactions for values with (modulus 4, remainder 2);
create table public.wallet_transactions_p3 partition of public.wallet_transactions for values with (modulus 4, remainder 3);
create index on public.wallet_transactions (wallet_id);

create table public.documents (
  id uuid primary key default gen_random_uuid(),
  project_id uuid not null references public.projects,
  uploaded_by uuid not null references public.users,
  title text not null,
  kind text not null default 'other',
  version integer not null default 1,
  storage_path text not null,
  keywords text[] not null default '{}',
  search tsvector,
  signed_at timestamptz,
  created_at timestamptz not null default now()
);
create index on public.documents (project_id);
create index on public.documents (uploaded_by);
create index on public.documents using gin (search);

create table public.notifications (
  id bigint generated by default as identity primary key,
  user_id uuid not null references public.users on delete cascade,
  kind text not null,
  reference_id text not null,
  title text not null,
  payload jsonb not null default '{}',
  read_at timestamptz,
  created_at timestamptz not null default now()
);
create index on public.notifications (user_id, created_at);

-- What the triggers write.

create table public.audit_logs (
  id bigserial primary key,
  table_name text not null,
  record_id text,
  operation text not null,
  old_data jsonb,
  new_data jsonb,
  changes jsonb,
  user_id uuid,
  ip_address inet,
  created_at timestamptz not null default now()
);
create index on public.audit_logs (table_name, record_id);
create index on public.audit_logs (user_id, created_at);
create index on public.audit_logs (created_at);

create table public.activity_log (
  id bigserial primary key,
  actor_id uuid,
  actor_name text,
  action text not null,
  entity_type text not null,
  entity_id text,
  description text not null,
  details jsonb,
  created_at timestamptz not null default now()
);
create index on public.activity_log (entity_type, entity_id);
create index on public.activity_log (created_at);

create table public.platform_statistics (
  scope text primary key,
  users_total bigint not null default 0,
  projects_total bigint not null default 0,
  investors_total bigint not null default 0,
  token_operations_total bigint not null default 0,
  subscriptions_total bigint not null default 0,
  subscribed_amount numeric(24, 2) not null default 0,
  confirmed_amount numeric(24, 2) not null default 0,
  investments_total bigint not null default 0,
  invested_amount numeric(24, 2) not null default 0,
  wallet_transactions_total bigint not null default 0,
  wallet_volume numeric(24, 2) not null default 0,
  updated_at timestamptz not null default now()
);
comment on table public.platform_statistics is 'row ''platform'' is live and stands on the front page; the others are what it said at the end of a day';

-- The role that the application logs in as. Roles belong to the cluster, so it may be there already.
do $$
begin
  create role demo_app login;
exception
  when duplicate_object or unique_violation then null;
end
$$;

grant usage on schema auth, public to demo_app;
grant select, insert, update, delete on
  public.users, public.projects, public.project_settings, public.investor_groups, public.bulk_operations,
  public.investors, public.token_templates, public.tokens, public.subscriptions, public.token_allocations,
  public.token_operations, public.investments, public.distributions, public.redemptions, public.wallets,
  public.wallet_transactions, public.documents, public.notifications to demo_app;
grant select, insert on public.activity_log to demo_app;
grant select on public.audit_logs to demo_app;
grant select, update on public.platform_statistics to demo_app;
grant usage on all sequences in schema public to demo_app;
