-- Three audit triggers as people write them: generic with jsonb, generic with hstore, and by statement.

create function peers.log_jsonb() returns trigger language plpgsql as $$
begin
    insert into peers.log (relation, operation, before, after)
    values (
        tg_table_name, tg_op,
        case when tg_op <> 'INSERT' then pg_catalog.to_jsonb(old) end,
        case when tg_op <> 'DELETE' then pg_catalog.to_jsonb(new) end
    );
    return null;
end
$$;
create trigger log after insert or update or delete on peers.orders_jsonb
    for each row execute function peers.log_jsonb();

create function peers.log_hstore() returns trigger language plpgsql as $$
begin
    insert into peers.hstore_log (relation, operation, row_data, changed_fields)
    values (
        tg_table_name, tg_op,
        case when tg_op = 'INSERT' then public.hstore(new) else public.hstore(old) end,
        case when tg_op = 'UPDATE' then public.hstore(new) operator(public.-) public.hstore(old) end
    );
    return null;
end
$$;
create trigger log after insert or update or delete on peers.orders_hstore
    for each row execute function peers.log_hstore();

create function peers.log_transition() returns trigger language plpgsql as $$
begin
    insert into peers.log (relation, operation, before, after)
    select tg_table_name, tg_op, pg_catalog.to_jsonb(o), pg_catalog.to_jsonb(n)
      from old_rows o
      join new_rows n on n.id = o.id;
    return null;
end
$$;
create trigger log after update on peers.orders_transition
    referencing old table as old_rows new table as new_rows
    for each statement execute function peers.log_transition();
