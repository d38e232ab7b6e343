-- The business rules that live in the database: derived columns, guards, and the two balances.

create function public.touch_updated_at() returns trigger language plpgsql as $$
begin
  new.updated_at := now();
  return new;
end;
$$;
comment on function public.touch_updated_at() is 'moddatetime, our own';

create trigger users_touch before update on public.users
  for each row execute function public.touch_updated_at();
create trigger projects_touch before update on public.projects
  for each row execute function public.touch_updated_at();
create trigger project_settings_touch before update on public.project_settings
  for each row execute function public.touch_updated_at();
create trigger investors_touch before update on public.investors
  for each row execute function public.touch_updated_at();
create trigger tokens_touch before update on public.tokens
  for each row execute function public.touch_updated_at();
create trigger subscriptions_touch before update on public.subscriptions
  for each row when (old.* is distinct from new.*) execute function public.touch_updated_at();
create trigger wallets_touch before update on public.wallets
  for each row execute function public.touch_updated_at();
create trigger bulk_operations_touch before update on public.bulk_operations
  for each row execute function public.touch_updated_at();

create function public.index_project() returns trigger language plpgsql as $$
begin
  new.search := setweight(to_tsvector('simple', new.name), 'A')
             || setweight(to_tsvector('simple', new.description), 'B')
             || setweight(to_tsvector('simple', array_to_string(new.tags, ' ')), 'C');
  return new;
end;
$$;

create trigger projects_search before insert or update of name, description, tags on public.projects
  for each row execute function public.index_project();

create function public.index_document() returns trigger language plpgsql as $$
begin
  if tg_op = 'INSERT' or new.title is distinct from old.title or new.keywords is distinct from old.keywords then
    new.search := to_tsvector('simple', new.title || ' ' || array_to_string(new.keywords, ' '));
  end if;
  return new;
end;
$$;

create trigger documents_search before insert or update on public.documents
  for each row execute function public.index_document();

create function public.normalise_investor() returns trigger language plpgsql as $$
begin
  new.email := lower(btrim(new.email));
  if new.country is not null then
    new.country := upper(new.country);
  end if;
  return new;
end;
$$;

create trigger investors_normalise before insert or update of email, country on public.investors
  for each row execute function public.normalise_investor();

create function public.derive_units() returns trigger language plpgsql as $$
begin
  select round(new.amount / new.unit_price, 6) into new.units;
  return new;
end;
$$;

create trigger investments_units before insert or update of amount, unit_price on public.investments
  for each row execute function public.derive_units();

create function public.guard_project_status() returns trigger language plpgsql as $$
begin
  if old.status = new.status then
    return new;
  end if;
  if not (
       (old.status = 'draft' and new.status = 'active')
    or (old.status = 'active' and new.status in ('paused', 'closed'))
    or (old.status = 'paused' and new.status in ('active', 'closed'))
  ) then
    raise exception 'a project cannot go from % to %', old.status, new.status
      using errcode = 'check_violation', hint = 'open projects are paused or closed; closed ones stay closed';
  end if;
  return new;
end;
$$;

create trigger projects_status_guard before update of status on public.projects
  for each row execute function public.guard_project_status();

create function public.guard_subscription_status() returns trigger language plpgsql as $$
begin
  case
    when old.status = new.status then
      null;
    when old.status = 'submitted' then
      null;
    when old.status = 'confirmed' and new.status = 'cancelled' then
      perform 1 from public.investments i where i.subscription_id = old.id and i.status = 'open';
      if found then
        raise exception 'subscription % has open investments', old.id using errcode = 'restrict_violation';
      end if;
    else
      raise exception 'a % subscription cannot become %', old.status, new.status using errcode = 'check_violation';
  end case;
  return new;
end;
$$;

create trigger subscriptions_status_guard before update of status on public.subscriptions
  for each row when (old.status is distinct from new.status) execute function public.guard_subscription_status();

create function public.guard_investor_delete() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
begin
  if exists (select from investments where investor_id = old.id and status = 'open') then
    raise exception 'investor % has open investments', old.display_name using errcode = 'restrict_violation';
  end if;
  return old;
end;
$$;

create trigger investors_delete_guard before delete on public.investors
  for each row execute function public.guard_investor_delete();

create function public.guard_token_supply() returns trigger language plpgsql as $$
begin
  if new.total_supply < old.allocated_supply then
    raise exception 'supply of % cannot fall to %: % are allocated', old.symbol, new.total_supply, old.allocated_supply
      using errcode = 'check_violation';
  end if;
  return new;
end;
$$;

create trigger tokens_supply_guard before update of total_supply on public.tokens
  for each row execute function public.guard_token_supply();

create function public.guard_allocation() returns trigger language plpgsql as $$
declare
  v_token public.tokens%rowtype;
  v_wanted numeric := new.amount;
begin
  select * into strict v_token from public.tokens where id = new.token_id for no key update;
  if tg_op = 'UPDATE' then
    v_wanted := new.amount - old.amount;
  end if;
  if v_token.allocated_supply + v_wanted > v_token.total_supply then
    raise exception 'only % of % are left to allocate', v_token.total_supply - v_token.allocated_supply, v_token.symbol
      using errcode = 'check_violation';
  end if;
  return new;
end;
$$;

create trigger token_allocations_supply_guard before insert or update of amount on public.token_allocations
  for each row execute function public.guard_allocation();

create function public.apply_allocation() returns trigger language plpgsql as $$
begin
  if tg_op = 'INSERT' then
    update public.tokens set allocated_supply = allocated_supply + new.amount where id = new.token_id;
  elsif tg_op = 'DELETE' then
    update public.tokens set allocated_supply = allocated_supply - old.amount where id = old.token_id;
  elsif new.amount <> old.amount then
    update public.tokens set allocated_supply = allocated_supply + new.amount - old.amount where id = new.token_id;
  end if;
  return null;
end;
$$;

create trigger token_allocations_supply after insert or update or delete on public.token_allocations
  for each row execute function public.apply_allocation();

create function public.apply_wallet_transaction() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
declare
  v_delta numeric := 0;
begin
  if tg_op in ('UPDATE', 'DELETE') then
    v_delta := v_delta - case old.direction when 'credit' then old.amount else -old.amount end;
  end if;
  if tg_op in ('INSERT', 'UPDATE') then
    v_delta := v_delta + case new.direction when 'credit' then new.amount else -new.amount end;
  end if;
  if v_delta <> 0 then
    update wallets set balance = balance + v_delta where id = coalesce(new.wallet_id, old.wallet_id);
  end if;
  return null;
end;
$$;
comment on function public.apply_wallet_transaction() is 'wallets.balance is the sum of the wallet''s transactions';

create trigger wallet_transactions_balance after insert or update or delete on public.wallet_transactions
  for each row execute function public.apply_wallet_transaction();

create function public.guard_redemption() returns trigger language plpgsql as $$
declare
  v_available numeric;
begin
  select coalesce(sum(w.balance), 0) into v_available
    from public.wallets w where w.investor_id = new.investor_id and w.status = 'active';
  if new.amount > v_available then
    raise exception 'redemption of % exceeds the balance of %', new.amount, v_available using errcode = 'check_violation';
  end if;
  return new;
end;
$$;

create trigger redemptions_balance_guard before insert on public.redemptions
  for each row execute function public.guard_redemption();

create function public.guard_signed_document() returns trigger language plpgsql as $$
begin
  if old.signed_at is null then
    if tg_op = 'DELETE' then
      return old;
    end if;
    return new;
  end if;
  raise exception 'document "%" is signed', old.title using errcode = 'restrict_violation';
end;
$$;

create trigger documents_signed_guard before update or delete on public.documents
  for each row execute function public.guard_signed_document();

create function public.guard_paid_distribution() returns trigger language plpgsql as $$
begin
  if tg_op = 'DELETE' or new.amount is distinct from old.amount or new.status is distinct from old.status then
    raise exception 'distribution % is paid', old.id using errcode = 'restrict_violation';
  end if;
  return null;
end;
$$;

create constraint trigger distributions_paid_guard after update or delete on public.distributions
  deferrable initially deferred
  for each row when (old.status = 'paid') execute function public.guard_paid_distribution();
