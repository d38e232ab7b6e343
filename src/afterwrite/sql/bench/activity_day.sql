-- Rows of one day: changes and events as they come, some of everything frequent, some of everything rare.
insert into afterwrite.{partition} (
    id, occurred_at, batch_id, xid, commit_lsn, ordinal, source, kind, category, action, outcome, severity, entity_type,
    entity_id, actor_id, actor_type, tenant_id, request_id, ip, summary, relation, operation, changed, before, after, metadata
)
select (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || '8000' || '8000' || lpad(to_hex(n::bigint), 12, '0'))::uuid,
       at, %(batch)s::bigint, n / 5, ('0/' || to_hex(n / 5 + 1))::pg_lsn, n %% 5, 'main',
       case when event then 'event' else 'change' end,
       case when not event then 'data' when n %% 2000 = 7 then 'security'
            else (array['authentication', 'financial', 'document'])[1 + n %% 3] end,
       case when not event then thing || '.' || op when n %% 2000 = 7 then 'key.revoke'
            else (array['user.login', 'redemption.approve', 'report.export'])[1 + n %% 3] end,
       case when event and n %% 100 = 7 then 'failure' else 'success' end,
       case when event and n %% 1000 = 7 then 'error' else 'info' end,
       case when event then 'project' else thing end, key::text,
       case when n %% 5 = 0 then 'system' else 'user:' || (u * u * u * 3000)::int end, 'user', 'tenant-' || key %% 50,
       'req-' || to_hex(n / 5), ('10.0.' || key %% 250 || '.' || n %% 250)::inet,
       case when event
            then (array['Jane Doe signed in', 'Ivan Petrov approved redemption ' || key || ' of gold token',
                        'Élodie Martin exported the report of équipe ' || key %% 100])[1 + n %% 3]
                 || case when n %% 25000 = 7 then ', a quixotic platinum token transfer' else '' end
            when op = 'insert' then 'insert ' || thing || ' ' || key || ': pending, Customer ' || key
            else 'update ' || thing || ' ' || key || ': status pending -> ' || (array['approved', 'rejected', 'closed'])[1 + n %% 3]
                 || ', amount ' || key %% 1000 || '.50 -> ' || n %% 1000 || '.00'
       end,
       case when not event then 'public.' || thing end, case when not event then op end,
       case when not event and op = 'update' then
            case when n %% 5000 = 1 then array['iban'] else array['status', 'amount', 'updated_at'] end end,
       case when not event and op = 'update' then json_build_object('id', key, 'status', 'pending', 'amount', key %% 1000) end,
       case when not event then json_build_object('id', key, 'status', 'approved', 'amount', n %% 1000, 'note', repeat('x', 60)) end,
       case when event then json_build_object(
            'plan', case when n %% 5000 = 7 then 'enterprise' when n %% 3 = 0 then 'pro' else 'free' end, 'ticket', 'T-' || key) end
  from (select n, %(day)s::timestamptz + make_interval(secs => 86399.0 * (n - %(first)s::bigint) / %(rows)s::bigint) as at,
               n %% 5 = 2 as event, random() as u, (random() * 100000)::int as key,
               case when n %% 5003 = 0 then 'config' else (array['orders', 'users', 'projects', 'allocations'])[1 + n %% 4] end as thing,
               case when n %% 3 = 0 then 'insert' else 'update' end as op
          from generate_series(%(first)s::bigint, %(first)s::bigint + %(rows)s::bigint - 1) n) as drawn
