-- What the platform does whenever something happens: audit rows, lines for the activity page, notifications,
-- statistics, import progress, pushes to the browser. Grown over the years, by several hands.

-- 1. Audit rows ------------------------------------------------------------------------------------------------------

-- Arguments: columns to leave out.
create function public.audit_row_change() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  v_old jsonb;
  v_new jsonb;
  v_changes jsonb := '{}';
  v_key text;
  v_value jsonb;
begin
  if tg_op in ('UPDATE', 'DELETE') then
    v_old := to_jsonb(old) - coalesce(tg_argv, '{}');
  end if;
  if tg_op in ('INSERT', 'UPDATE') then
    v_new := to_jsonb(new) - coalesce(tg_argv, '{}');
  end if;
  if tg_op = 'UPDATE' then
    for v_key, v_value in select key, value from jsonb_each(v_new) loop
      if v_old -> v_key is distinct from v_value then
        v_changes := v_changes || jsonb_build_object(v_key, jsonb_build_object('old', v_old -> v_key, 'new', v_value));
      end if;
    end loop;
  end if;
  insert into audit_logs (table_name, record_id, operation, old_data, new_data, changes, user_id, ip_address)
  values (
    tg_table_name, coalesce(v_new ->> 'id', v_old ->> 'id'), tg_op, v_old, v_new, nullif(v_changes, '{}'),
    auth.uid(), inet_client_addr()
  );
  return coalesce(new, old);
end;
$$;
comment on function public.audit_row_change() is 'generic; pass column names to leave out';

create trigger trg_users_audit after insert or update or delete on public.users
  for each row execute function public.audit_row_change('preferences');
create trigger trg_projects_audit after insert or update or delete on public.projects
  for each row execute function public.audit_row_change('search');
create trigger trg_investors_audit after insert or update or delete on public.investors
  for each row execute function public.audit_row_change();
create trigger trg_investor_groups_audit after insert or update or delete on public.investor_groups
  for each row execute function public.audit_row_change();
create trigger trg_tokens_audit after insert or update or delete on public.tokens
  for each row execute function public.audit_row_change();
create trigger trg_token_allocations_audit after insert or update or delete on public.token_allocations
  for each row execute function public.audit_row_change();
create trigger trg_subscriptions_audit after insert or update or delete on public.subscriptions
  for each row execute function public.audit_row_change();
create trigger trg_investments_audit after insert or update or delete on public.investments
  for each row execute function public.audit_row_change();
create trigger trg_redemptions_audit after insert or update or delete on public.redemptions
  for each row execute function public.audit_row_change();
create trigger trg_documents_audit after insert or update or delete on public.documents
  for each row execute function public.audit_row_change('search', 'storage_path');
create trigger trg_notifications_audit after insert or update or delete on public.notifications
  for each row execute function public.audit_row_change();
create trigger trg_bulk_operations_audit after insert or update or delete on public.bulk_operations
  for each row execute function public.audit_row_change();

alter table public.users enable always trigger trg_users_audit;
comment on trigger trg_users_audit on public.users is 'also fires while the HR import loads with session_replication_role = replica';
comment on trigger trg_projects_audit on public.projects is 'asked for by the auditors, 2021';

-- The first version, from before audit_row_change(). Argument: the table to write to.
create function public.record_history() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
begin
  if tg_op = 'INSERT' then
    execute format('insert into %I (table_name, record_id, operation, new_data, user_id) values ($1, $2, $3, $4, $5)', tg_argv[0])
      using tg_table_name::text, new.id::text, tg_op, to_jsonb(new), auth.uid();
    return new;
  elsif tg_op = 'UPDATE' then
    execute format(
      'insert into %I (table_name, record_id, operation, old_data, new_data, user_id) values ($1, $2, $3, $4, $5, $6)',
      tg_argv[0]
    ) using tg_table_name::text, new.id::text, tg_op, to_jsonb(old), to_jsonb(new), auth.uid();
    return new;
  end if;
  execute format('insert into %I (table_name, record_id, operation, old_data, user_id) values ($1, $2, $3, $4, $5)', tg_argv[0])
    using tg_table_name::text, old.id::text, tg_op, to_jsonb(old), auth.uid();
  return old;
end;
$$;

create trigger token_templates_history after insert or update or delete on public.token_templates
  for each row execute function public.record_history('audit_logs');
create trigger distributions_history after insert or update or delete on public.distributions
  for each row execute function public.record_history('audit_logs');

-- One statement at a time, because settlements come in hundreds.
create function public.audit_operations() returns trigger language plpgsql security definer set search_path = '' as $$
begin
  case tg_op
    when 'INSERT' then
      insert into public.audit_logs (table_name, record_id, operation, new_data, user_id)
      select tg_table_name, n.id::text, tg_op, to_jsonb(n), auth.uid() from new_rows n;
    when 'UPDATE' then
      insert into public.audit_logs (table_name, record_id, operation, old_data, new_data, user_id)
      select tg_table_name, n.id::text, tg_op, to_jsonb(o), to_jsonb(n), auth.uid()
        from old_rows o join new_rows n on n.id = o.id;
    when 'DELETE' then
      insert into public.audit_logs (table_name, record_id, operation, old_data, user_id)
      select tg_table_name, o.id::text, tg_op, to_jsonb(o), auth.uid() from old_rows o;
  end case;
  return null;
end;
$$;

create trigger token_operations_audit_insert after insert on public.token_operations
  referencing new table as new_rows for each statement execute function public.audit_operations();
create trigger token_operations_audit_update after update on public.token_operations
  referencing old table as old_rows new table as new_rows for each statement execute function public.audit_operations();
create trigger token_operations_audit_delete after delete on public.token_operations
  referencing old table as old_rows for each statement execute function public.audit_operations();

create function public.audit_wallet() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  v_row public.wallets%rowtype;
begin
  v_row := coalesce(new, old);
  insert into audit_logs (table_name, record_id, operation, old_data, new_data, changes, user_id, ip_address)
  values (
    'wallets', v_row.id::text, tg_op,
    case when tg_op <> 'INSERT' then jsonb_build_object('status', old.status, 'balance', old.balance, 'address', old.address) end,
    case when tg_op <> 'DELETE' then jsonb_build_object('status', new.status, 'balance', new.balance, 'address', new.address) end,
    case when tg_op = 'UPDATE' and old.balance <> new.balance then jsonb_build_object('balance', new.balance - old.balance) end,
    auth.uid(), inet_client_addr()
  );
  return v_row;
end;
$$;

create trigger wallets_audit after insert or delete on public.wallets
  for each row execute function public.audit_wallet();
create trigger wallets_audit_change after update on public.wallets
  for each row when (old.* is distinct from new.*) execute function public.audit_wallet();

create function public.audit_wallet_transaction() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  v_id bigint;
  v_claims jsonb := nullif(current_setting('request.jwt.claims', true), '')::jsonb;
begin
  if tg_op = 'DELETE' then
    v_id := old.id;
  else
    v_id := new.id;
  end if;
  insert into audit_logs (table_name, record_id, operation, old_data, new_data, user_id)
  select 'wallet_transactions', v_id::text, tg_op, to_jsonb(old), to_jsonb(new), (v_claims ->> 'sub')::uuid;
  return null;
end;
$$;

create trigger wallet_transactions_audit after insert or update or delete on public.wallet_transactions
  for each row execute function public.audit_wallet_transaction();
comment on trigger wallet_transactions_audit on public.wallet_transactions is 'table_name is the parent''s, not the partition''s';

create function public.audit_access() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
begin
  insert into audit_logs (table_name, record_id, operation, old_data, new_data, changes, user_id)
  values (
    'users', new.id::text, 'ACCESS',
    jsonb_build_object('role', old.role, 'status', old.status),
    jsonb_build_object('role', new.role, 'status', new.status),
    jsonb_build_object('as', auth.role(), 'session', current_setting('request.jwt.claims', true)::jsonb ->> 'session_id'),
    auth.uid()
  );
  return new;
end;
$$;

create trigger users_access_changed after update of role, status on public.users
  for each row when ((old.role, old.status) is distinct from (new.role, new.status))
  execute function public.audit_access();

create function public.audit_supply() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  v_percent numeric;
begin
  v_percent := round(100 * (new.total_supply - old.total_supply) / nullif(old.total_supply, 0), 2);
  insert into audit_logs (table_name, record_id, operation, old_data, new_data, changes, user_id)
  values (
    tg_relname, new.id, 'SUPPLY', jsonb_build_object('total_supply', old.total_supply),
    jsonb_build_object('total_supply', new.total_supply), jsonb_build_object('percent', v_percent), auth.uid()
  );
  return new;
end;
$$;

create trigger tokens_supply_changed after update of total_supply on public.tokens
  for each row when (old.total_supply is distinct from new.total_supply) execute function public.audit_supply();

create function public.audit_settings() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  v_feature record;
  v_changes jsonb := '{}';
begin
  if tg_op = 'DELETE' then
    insert into audit_logs (table_name, record_id, operation, old_data, user_id)
    values (tg_table_name, old.project_id::text, tg_op, to_jsonb(old), auth.uid());
    return old;
  end if;
  if tg_op = 'UPDATE' then
    for v_feature in
      select coalesce(o.key, n.key) as key, o.value as was, n.value as is
        from jsonb_each(old.features) o full join jsonb_each(new.features) n on n.key = o.key
       where o.value is distinct from n.value
    loop
      v_changes := jsonb_set(v_changes, array[v_feature.key], jsonb_build_array(v_feature.was, v_feature.is));
    end loop;
    insert into audit_logs (table_name, record_id, operation, old_data, new_data, changes, user_id)
    values (tg_table_name, new.project_id::text, tg_op, to_jsonb(old), to_jsonb(new), v_changes, auth.uid());
  else
    insert into audit_logs (table_name, record_id, operation, new_data, user_id)
    values (tg_table_name, new.project_id::text, tg_op, to_jsonb(new), auth.uid());
  end if;
  return new;
end;
$$;

create trigger project_settings_audit after insert or update or delete on public.project_settings
  for each row execute function public.audit_settings();

-- 2. Lines for the activity page -------------------------------------------------------------------------------------

-- Arguments: the entity's name, the column that people call it by.
create function public.log_activity() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  v_row jsonb := to_jsonb(coalesce(new, old));
  v_label text := v_row ->> tg_argv[1];
  v_actor text;
  v_verb text;
begin
  select full_name into v_actor from users where id = auth.uid();
  v_verb := case tg_op when 'INSERT' then 'created' when 'UPDATE' then 'changed' else 'deleted' end;
  insert into activity_log (actor_id, actor_name, action, entity_type, entity_id, description, details)
  values (
    auth.uid(), coalesce(v_actor, 'system'), tg_argv[0] || '.' || v_verb, tg_argv[0], v_row ->> 'id',
    format('%s %s %s "%s"', coalesce(v_actor, 'The system'), v_verb, tg_argv[0], v_label),
    jsonb_build_object('label', v_label)
  );
  return null;
end;
$$;

create trigger users_activity after insert or delete on public.users
  for each row execute function public.log_activity('user', 'full_name');
create trigger projects_activity after insert or update or delete on public.projects
  for each row execute function public.log_activity('project', 'name');
create trigger investors_activity after insert or update or delete on public.investors
  for each row execute function public.log_activity('investor', 'display_name');
create trigger investor_groups_activity after insert or update or delete on public.investor_groups
  for each row execute function public.log_activity('investor group', 'name');
create trigger tokens_activity after insert or delete on public.tokens
  for each row execute function public.log_activity('token', 'symbol');
create trigger token_templates_activity after insert or update or delete on public.token_templates
  for each row execute function public.log_activity('token template', 'name');
create trigger distributions_activity after insert or update or delete on public.distributions
  for each row execute function public.log_activity('distribution', 'kind');
create trigger documents_activity after insert or delete on public.documents
  for each row execute function public.log_activity('document', 'title');

-- Argument: the entity's name.
create function public.log_status_change() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  v_actor text;
begin
  select u.full_name into v_actor from users u where u.id = auth.uid();
  if not found then
    v_actor := 'system';
  end if;
  insert into activity_log (actor_id, actor_name, action, entity_type, entity_id, description, details)
  values (
    auth.uid(), v_actor, tg_argv[0] || '.status', tg_argv[0], new.id,
    v_actor || ' moved ' || tg_argv[0] || ' from ' || old.status || ' to ' || new.status,
    jsonb_build_object('from', old.status, 'to', new.status)
  );
  return new;
end;
$$;

create trigger projects_status_changed after update of status on public.projects
  for each row when (old.status is distinct from new.status) execute function public.log_status_change('project');
create trigger subscriptions_status_changed after update of status on public.subscriptions
  for each row when (old.status is distinct from new.status) execute function public.log_status_change('subscription');

create function public.log_sign_in() returns trigger language plpgsql as $$
begin
  insert into activity_log (actor_id, actor_name, action, entity_type, entity_id, description, details)
  values (
    new.id, new.full_name, 'user.sign_in', 'user', new.id::text, new.full_name || ' signed in',
    json_build_object('ip', host(new.last_sign_in_ip), 'previous', old.last_sign_in_at)
  );
  return new;
end;
$$;

create trigger users_sign_in after update of last_sign_in_at on public.users
  for each row when (new.last_sign_in_at is distinct from old.last_sign_in_at) execute function public.log_sign_in();

create function public.log_kyc_decision() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  v_claims json := nullif(current_setting('request.jwt.claims', true), '')::json;
  v_officer text := coalesce(v_claims ->> 'email', 'unknown officer');
begin
  insert into activity_log (actor_id, actor_name, action, entity_type, entity_id, description, details)
  values (
    (v_claims ->> 'sub')::uuid, v_officer, 'investor.kyc', 'investor', new.id,
    format('%s set KYC of %s to %s', v_officer, new.display_name, new.kyc_status),
    jsonb_build_object('from', old.kyc_status, 'to', new.kyc_status, 'risk', new.risk_score)
  );
  return null;
end;
$$;
comment on function public.log_kyc_decision() is 'BaFin wants the officer by name';

create trigger investors_kyc after update of kyc_status on public.investors
  for each row when (old.kyc_status is distinct from new.kyc_status) execute function public.log_kyc_decision();

create function public.log_import() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  v_count integer;
begin
  select count(*) into v_count from imported where bulk_operation_id is not null;
  if v_count > 0 then
    insert into activity_log (actor_id, action, entity_type, description, details)
    values (auth.uid(), 'investor.imported', 'investor', v_count || ' investors imported', jsonb_build_object('count', v_count));
  end if;
  return null;
end;
$$;

create trigger investors_import_line after insert on public.investors
  referencing new table as imported for each statement execute function public.log_import();

create function public.log_allocation() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  v_allocation public.token_allocations;
  v_symbol text;
  v_investor text;
begin
  if tg_op = 'DELETE' then v_allocation := old; else v_allocation := new; end if;
  select t.symbol into v_symbol from tokens t where t.id = v_allocation.token_id;
  select i.display_name into v_investor from investors i where i.id = v_allocation.investor_id;
  insert into activity_log (actor_id, action, entity_type, entity_id, description, details)
  values (
    auth.uid(), 'allocation.' || lower(tg_op), 'allocation', v_allocation.id,
    concat_ws(' ', v_allocation.amount, v_symbol, case tg_op when 'INSERT' then 'allocated to' else 'taken back from' end, v_investor),
    jsonb_build_object('amount', v_allocation.amount, 'token_id', v_allocation.token_id)
  );
  return v_allocation;
end;
$$;

create trigger token_allocations_activity after insert or delete on public.token_allocations
  for each row execute function public.log_allocation();

create function public.log_subscription() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  v_investor investors.display_name%type;
  v_project projects.name%type;
begin
  select i.display_name, p.name into v_investor, v_project
    from investors i, projects p
   where i.id = new.investor_id and p.id = new.project_id;
  insert into activity_log (actor_id, actor_name, action, entity_type, entity_id, description, details)
  values (
    auth.uid(), v_investor, 'subscription.submitted', 'subscription', new.id::text,
    v_investor || ' subscribes to ' || v_project || ' for ' || to_char(new.amount, 'FM999G999G990D00') || ' ' || new.currency,
    jsonb_build_object('amount', new.amount, 'currency', new.currency)
  );
  return new;
end;
$$;

create trigger subscriptions_activity after insert on public.subscriptions
  for each row execute function public.log_subscription();

create function public.log_investment() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  v_text text;
begin
  if tg_op = 'INSERT' then
    v_text := 'invested ' || new.amount;
  elsif tg_op = 'UPDATE' then
    if new.status <> old.status then
      v_text := 'investment is ' || new.status;
    else
      v_text := 'investment corrected to ' || new.amount;
    end if;
  else
    v_text := 'investment of ' || old.amount || ' removed';
  end if;
  insert into activity_log (actor_id, actor_name, action, entity_type, entity_id, description)
  values (
    auth.uid(), (select full_name from users where id = auth.uid()),
    'investment.' || lower(tg_op), 'investment', coalesce(new.id, old.id)::text, v_text
  );
  return null;
end;
$$;

create trigger investments_activity after insert or update or delete on public.investments
  for each row execute function public.log_investment();

create function public.log_redemption() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
begin
  insert into activity_log (actor_id, action, entity_type, entity_id, description, details)
  select auth.uid(), 'redemption.requested', 'redemption', new.id, i.display_name || ' redeems ' || new.amount || ' of ' || t.symbol,
         jsonb_build_object('amount', new.amount, 'reason', new.reason)
    from investors i join tokens t on t.id = new.token_id
   where i.id = new.investor_id;
  return new;
end;
$$;

create trigger redemptions_activity after insert on public.redemptions
  for each row execute function public.log_redemption();

-- A broken log must never stop a decision (incident of March 2022).
create function public.log_redemption_decision() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
begin
  begin
    insert into activity_log (actor_id, action, entity_type, entity_id, description, details)
    values (
      auth.uid(), 'redemption.' || new.status, 'redemption', new.id::text, 'redemption ' || new.status,
      jsonb_build_object('amount', new.amount, 'waited', new.decided_at - new.created_at)
    );
  exception
    when others then
      raise warning 'activity line for redemption % was not written: %', new.id, sqlerrm;
  end;
  return new;
end;
$$;

create trigger redemptions_decided after update of status on public.redemptions
  for each row when (old.status is distinct from new.status) execute function public.log_redemption_decision();

create function public.log_settlement() returns trigger language plpgsql as $$
declare
  v_wallet public.wallets;
begin
  select * into v_wallet from public.wallets where id = new.wallet_id;
  insert into public.activity_log (actor_id, action, entity_type, entity_id, description, details)
  values (
    auth.uid(), 'wallet_transaction.' || new.status, 'wallet_transaction', new.id,
    format('%s of %s on %s is %s', new.direction, new.amount, left(v_wallet.address, 10), new.status),
    jsonb_build_object('wallet_id', new.wallet_id, 'network', v_wallet.network)
  );
  return null;
end;
$$;

create trigger wallet_transactions_settled after update of status on public.wallet_transactions
  for each row when (old.status is distinct from new.status) execute function public.log_settlement();

create function public.log_document_version() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
begin
  insert into activity_log (actor_id, action, entity_type, entity_id, description)
  values (auth.uid(), 'document.revised', 'document', new.id, format('"%s" is now version %s', new.title, new.version));
  return new;
end;
$$;

create trigger documents_version after update of version on public.documents
  for each row when (new.version > old.version) execute function public.log_document_version();

create function public.log_notification_read() returns trigger language plpgsql as $$
begin
  insert into activity_log (actor_id, action, entity_type, entity_id, description)
  values (new.user_id, 'notification.read', 'notification', new.id, 'read: ' || new.title);
  return new;
end;
$$;

create trigger notifications_read after update of read_at on public.notifications
  for each row when (old.read_at is null and new.read_at is not null) execute function public.log_notification_read();

create function public.log_bulk_start() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
begin
  insert into activity_log (actor_id, action, entity_type, description)
  values (auth.uid(), 'bulk.registered', 'bulk operation', 'a bulk operation was registered');
  return null;
end;
$$;

create trigger bulk_operations_started after insert on public.bulk_operations
  for each statement execute function public.log_bulk_start();

create function public.log_settings() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  v_actor users;
begin
  select * from users where id = auth.uid() into v_actor;
  insert into activity_log (actor_id, actor_name, action, entity_type, entity_id, description, details)
  values (
    v_actor.id, v_actor.full_name, 'settings.changed', 'project settings', new.project_id,
    v_actor.full_name || ' changed the settings of ' || new.project_name, new.features
  );
  return new;
end;
$$;

create trigger project_settings_activity after update on public.project_settings
  for each row execute function public.log_settings();

-- 3. Notifications ---------------------------------------------------------------------------------------------------

create function public.notify_subscription_received() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  v_owner uuid;
  v_project text;
begin
  select owner_id, name into v_owner, v_project from projects where id = new.project_id;
  insert into notifications (user_id, kind, reference_id, title, payload)
  values (
    v_owner, 'subscription.received', new.id::text, 'New subscription to ' || v_project,
    jsonb_build_object('amount', new.amount, 'currency', new.currency, 'by', auth.uid())
  );
  return new;
end;
$$;

create trigger subscriptions_received after insert on public.subscriptions
  for each row execute function public.notify_subscription_received();

create function public.notify_subscription_decided() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  v_user uuid := (select i.user_id from investors i where i.id = new.investor_id);
begin
  if v_user is not null then
    insert into notifications (user_id, kind, reference_id, title)
    values (v_user, 'subscription.' || new.status, new.id::text, 'Your subscription is ' || new.status);
  end if;
  return new;
end;
$$;

create trigger subscriptions_decided after update of status on public.subscriptions
  for each row when (old.status is distinct from new.status) execute function public.notify_subscription_decided();

create function public.notify_distribution_paid() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
begin
  insert into notifications (user_id, kind, reference_id, title, payload)
  select i.user_id, 'distribution.paid', new.id, initcap(new.kind) || ' paid', jsonb_build_object('amount', new.amount)
    from investors i
   where i.id = new.investor_id and i.user_id is not null;
  return null;
end;
$$;

create trigger distributions_paid after update of status on public.distributions
  for each row when (new.status = 'paid' and old.status <> 'paid') execute function public.notify_distribution_paid();

create function public.notify_redemption() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  v_user uuid;
begin
  if tg_op = 'INSERT' then
    select p.owner_id into v_user from tokens t join projects p on p.id = t.project_id where t.id = new.token_id;
  elsif new.status is distinct from old.status then
    select user_id into v_user from investors where id = new.investor_id;
  end if;
  if v_user is null then
    return new;
  end if;
  begin
    insert into notifications (user_id, kind, reference_id, title, payload)
    values (
      v_user, 'redemption.' || new.status, new.id, 'Redemption ' || new.status,
      jsonb_build_object('amount', new.amount, 'token', new.token_id)
    );
  exception
    when foreign_key_violation then
      raise log 'nobody to notify of redemption %', new.id;
  end;
  return new;
end;
$$;

create trigger redemptions_notify after insert or update of status on public.redemptions
  for each row execute function public.notify_redemption();

create function public.notify_allocation() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  r record;
begin
  for r in select i.user_id, t.symbol
             from investors i cross join tokens t
            where i.id = new.investor_id and t.id = new.token_id and i.user_id is not null
  loop
    insert into notifications (user_id, kind, reference_id, title, payload)
    values (r.user_id, 'allocation.made', new.id::text, format('%s %s for you', new.amount, r.symbol), to_jsonb(new));
  end loop;
  return new;
end;
$$;

create trigger token_allocations_notify after insert on public.token_allocations
  for each row execute function public.notify_allocation();

create function public.notify_document() returns trigger language plpgsql as $$
begin
  insert into public.notifications (user_id, kind, reference_id, title)
  select p.owner_id, 'document.uploaded', new.id::text, new.title || ' was uploaded'
    from public.projects p
   where p.id = new.project_id;
  return new;
end;
$$;

create trigger documents_notify after insert on public.documents
  for each row when (new.kind in ('contract', 'prospectus')) execute function public.notify_document();

create function public.notify_bulk_finished() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
begin
  insert into notifications (user_id, kind, reference_id, title, payload)
  values (
    new.initiated_by, 'bulk.finished', new.id::text, format('%s: %s of %s rows', new.kind, new.processed_rows, new.total_rows),
    jsonb_build_object('failed', new.failed_rows)
  );
  return new;
end;
$$;

create trigger bulk_operations_finished after update of processed_rows, failed_rows on public.bulk_operations
  for each row when (
    new.total_rows > 0
    and new.processed_rows + new.failed_rows >= new.total_rows
    and old.processed_rows + old.failed_rows < old.total_rows
  ) execute function public.notify_bulk_finished();

create function public.push_notification() returns trigger language plpgsql as $$
begin
  perform pg_notify('notifications', json_build_object('user', new.user_id, 'kind', new.kind, 'id', new.id)::text);
  return null;
end;
$$;

create trigger notifications_push after insert on public.notifications
  for each row execute function public.push_notification();

create function public.broadcast_settings() returns trigger language plpgsql as $$
declare
  v_project uuid;
begin
  if tg_op = 'DELETE' then v_project := old.project_id; else v_project := new.project_id; end if;
  perform pg_notify(tg_argv[0], jsonb_build_object('project', v_project, 'operation', lower(tg_op))::text);
  return null;
end;
$$;

create trigger project_settings_broadcast after insert or update or delete on public.project_settings
  for each row execute function public.broadcast_settings('project_settings');

-- 4. Statistics, progress, copies ------------------------------------------------------------------------------------

-- Argument: what to count.
create function public.bump_statistics() returns trigger language plpgsql as $$
declare
  v_step integer := case tg_op when 'INSERT' then 1 else -1 end;
begin
  update public.platform_statistics
     set users_total = users_total + case tg_argv[0] when 'users' then v_step else 0 end,
         projects_total = projects_total + case tg_argv[0] when 'projects' then v_step else 0 end,
         investors_total = investors_total + case tg_argv[0] when 'investors' then v_step else 0 end,
         token_operations_total = token_operations_total + case tg_argv[0] when 'token_operations' then v_step else 0 end,
         updated_at = now()
   where scope = 'platform';
  return null;
end;
$$;
comment on function public.bump_statistics() is 'count(*) was too slow for the front page';

create trigger users_statistics after insert or delete on public.users
  for each row execute function public.bump_statistics('users');
create trigger projects_statistics after insert or delete on public.projects
  for each row execute function public.bump_statistics('projects');
create trigger investors_statistics after insert or delete on public.investors
  for each row execute function public.bump_statistics('investors');
create trigger token_operations_statistics after insert or delete on public.token_operations
  for each row execute function public.bump_statistics('token_operations');

create function public.count_subscriptions() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  v_count integer := 0;
  v_amount numeric := 0;
  v_confirmed numeric := 0;
begin
  if tg_op <> 'DELETE' then
    v_count := v_count + 1;
    v_amount := v_amount + new.amount;
    if new.status = 'confirmed' then
      v_confirmed := v_confirmed + new.amount;
    end if;
  end if;
  if tg_op <> 'INSERT' then
    v_count := v_count - 1;
    v_amount := v_amount - old.amount;
    if old.status = 'confirmed' then
      v_confirmed := v_confirmed - old.amount;
    end if;
  end if;
  update platform_statistics
     set subscriptions_total = subscriptions_total + v_count,
         subscribed_amount = subscribed_amount + v_amount,
         confirmed_amount = confirmed_amount + v_confirmed,
         updated_at = now()
   where scope = 'platform';
  return null;
end;
$$;

create trigger subscriptions_statistics after insert or update or delete on public.subscriptions
  for each row execute function public.count_subscriptions();

create function public.count_investments() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
begin
  case tg_op
    when 'INSERT' then
      update platform_statistics
         set investments_total = investments_total + 1, invested_amount = invested_amount + new.amount, updated_at = now()
       where scope = 'platform';
    when 'UPDATE' then
      if new.amount <> old.amount then
        update platform_statistics
           set invested_amount = invested_amount + new.amount - old.amount, updated_at = now()
         where scope = 'platform';
      end if;
    when 'DELETE' then
      update platform_statistics
         set investments_total = investments_total - 1, invested_amount = invested_amount - old.amount, updated_at = now()
       where scope = 'platform';
  end case;
  return null;
end;
$$;

create trigger investments_statistics after insert or update or delete on public.investments
  for each row execute function public.count_investments();

create function public.count_wallet_volume() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
begin
  update platform_statistics s
     set wallet_transactions_total = s.wallet_transactions_total + b.entries,
         wallet_volume = s.wallet_volume + b.volume,
         updated_at = now()
    from (select count(*) as entries, coalesce(sum(amount), 0) as volume from booked) b
   where s.scope = 'platform' and b.entries > 0;
  return null;
end;
$$;

create trigger wallet_transactions_volume after insert on public.wallet_transactions
  referencing new table as booked for each statement execute function public.count_wallet_volume();

create function public.advance_bulk_operation() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
begin
  update bulk_operations b
     set processed_rows = b.processed_rows + done.rows
    from (select n.bulk_operation_id, count(*) as rows from new_rows n where n.bulk_operation_id is not null group by 1) done
   where b.id = done.bulk_operation_id;
  return null;
end;
$$;
comment on function public.advance_bulk_operation() is 'the progress bar of the import page';

create trigger investors_bulk_progress after insert on public.investors
  referencing new table as new_rows for each statement execute function public.advance_bulk_operation();

create function public.copy_project_name() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
begin
  update project_settings set project_name = new.name where project_id = new.id;
  return new;
end;
$$;

create trigger projects_name_copied after update of name on public.projects
  for each row when (old.name is distinct from new.name) execute function public.copy_project_name();
