-- Django: event tables as django-pghistory makes them, protections and state machines as django-pgtrigger makes them.

create table "blog_post" ("id" bigint primary key, "title" varchar(200) not null, "status" varchar(20), "body" text,
  "is_active" boolean default true, "search" tsvector, "version" int default 1);
create table "blog_postevent" (
  "pgh_id" bigserial primary key, "pgh_created_at" timestamptz not null, "pgh_label" text not null,
  "id" bigint not null, "title" varchar(200) not null, "status" varchar(20), "pgh_obj_id" bigint
);
create or replace function pgtrigger_insert_insert_1a2b() returns trigger as $$
begin
  insert into "blog_postevent" ("id", "title", "status", "pgh_created_at", "pgh_label", "pgh_obj_id")
  values (new."id", new."title", new."status", now(), 'insert', new."id");
  return null;
end;
$$ language plpgsql;
-- = retire: appends-to-log
-- Because: an event table is a copy of the row and a label; nobody in the database does anything with it.
create trigger pgtrigger_insert_insert_1a2b after insert on "blog_post"
  for each row execute procedure pgtrigger_insert_insert_1a2b();
create or replace function pgtrigger_update_update_1a2b() returns trigger as $$
begin
  insert into "blog_postevent" ("id", "title", "status", "pgh_created_at", "pgh_label", "pgh_obj_id")
  values (new."id", new."title", new."status", now(), 'update', new."id");
  return null;
end;
$$ language plpgsql;
-- = retire: appends-to-log
create trigger pgtrigger_update_update_1a2b after update on "blog_post"
  for each row when (old.* is distinct from new.*) execute procedure pgtrigger_update_update_1a2b();

-- The same with a context row, which is made once a transaction and merged into.
create table "pghistory_context" ("id" uuid primary key, "created_at" timestamptz, "updated_at" timestamptz, "metadata" jsonb);
create table "shop_item" ("id" bigint primary key, "price" numeric);
create table "shop_itemevent" (
  "pgh_id" bigserial primary key, "pgh_created_at" timestamptz, "pgh_label" text, "id" bigint, "price" numeric,
  "pgh_context_id" uuid references "pghistory_context"
);
create or replace function _pgh_attach_context() returns "pghistory_context".id%type as $$
declare
  _context_id uuid;
  _context_metadata jsonb;
begin
  begin
    select into _context_id current_setting('pghistory.context_id');
    select into _context_metadata current_setting('pghistory.context_metadata');
    exception when others then
  end;
  if _context_id is not null and _context_metadata is not null then
    insert into "pghistory_context" (id, metadata, created_at, updated_at)
    values (_context_id, _context_metadata, now(), now())
    on conflict (id) do update set metadata = excluded.metadata, updated_at = excluded.updated_at;
    return _context_id;
  else
    return null;
  end if;
end;
$$ language plpgsql;
create or replace function pgtrigger_snapshot_insert_3c4d() returns trigger as $$
begin
  insert into "shop_itemevent" ("id", "price", "pgh_created_at", "pgh_label", "pgh_context_id")
  values (new."id", new."price", now(), 'snapshot', _pgh_attach_context());
  return null;
end;
$$ language plpgsql;
-- = defer: writes-other-table
-- Because: the context row is merged into, not appended, and it is the key that the events refer to.
create trigger pgtrigger_snapshot_insert_3c4d after insert on "shop_item"
  for each row execute procedure pgtrigger_snapshot_insert_3c4d();

-- Events of whole statements.
create table "crm_lead" ("id" bigint primary key, "stage" text);
create table "crm_lead_log" ("pgh_label" text, "id" bigint, "stage" text, "at" timestamptz);
create or replace function pgtrigger_statement_insert_5e6f() returns trigger as $$
begin
  insert into "crm_lead_log" ("pgh_label", "id", "stage", "at")
  select 'update', n."id", n."stage", now() from old_values o join new_values n on n."id" = o."id"
   where o."stage" is distinct from n."stage";
  return null;
end;
$$ language plpgsql;
-- = retire: appends-to-log
create trigger pgtrigger_statement_insert_5e6f after update on "crm_lead"
  referencing old table as old_values new table as new_values
  for each statement execute procedure pgtrigger_statement_insert_5e6f();

-- Protections, which can be ignored by a setting.
create or replace function "public"._pgtrigger_should_ignore(trigger_name name) returns boolean as $$
declare
  _pgtrigger_ignore text[];
  _result boolean;
begin
  begin
    select into _pgtrigger_ignore current_setting('pgtrigger.ignore');
    exception when others then
  end;
  if _pgtrigger_ignore is not null then
    select trigger_name = any(_pgtrigger_ignore) into _result;
    return _result;
  else
    return false;
  end if;
end;
$$ language plpgsql;
create or replace function pgtrigger_protect_deletes_7a8b() returns trigger as $$
begin
  if ("public"._pgtrigger_should_ignore(tg_name) is true) then
    if (tg_op = 'DELETE') then
      return old;
    else
      return new;
    end if;
  end if;
  raise exception 'pgtrigger: Cannot delete rows from % table', tg_table_name;
  return new;
end;
$$ language plpgsql;
-- = keep: raises
-- Because: it forbids.
create trigger pgtrigger_protect_deletes_7a8b before delete on "blog_post"
  for each row execute procedure pgtrigger_protect_deletes_7a8b();
create or replace function pgtrigger_status_fsm_9c0d() returns trigger as $$
begin
  if ("public"._pgtrigger_should_ignore(tg_name) is true) then
    return new;
  end if;
  case
    when old."status" is not distinct from new."status" then
      return new;
    when concat(old."status", ':', new."status") in ('draft:published', 'published:archived') then
      return new;
    else
      raise exception 'invalid transition of field "status" from "%" to "%" on table %', old."status", new."status", tg_table_name;
  end case;
end;
$$ language plpgsql;
-- = keep: raises
-- Because: it is a state machine.
create trigger pgtrigger_status_fsm_9c0d before update on "blog_post"
  for each row execute procedure pgtrigger_status_fsm_9c0d();
create or replace function pgtrigger_soft_delete_1e2f() returns trigger as $$
begin
  update "blog_post" set "is_active" = false where "id" = old."id";
  return null;
end;
$$ language plpgsql;
-- = keep: cancels-row
-- Because: it turns a DELETE into an UPDATE.
create trigger pgtrigger_soft_delete_1e2f before delete on "blog_post"
  for each row execute procedure pgtrigger_soft_delete_1e2f();
create or replace function pgtrigger_versioning_3a4b() returns trigger as $$
begin
  new."version" = new."version" + 1;
  return new;
end;
$$ language plpgsql;
-- = keep: changes-new
create trigger pgtrigger_versioning_3a4b before update on "blog_post"
  for each row when (old.* is distinct from new.*) execute procedure pgtrigger_versioning_3a4b();
-- = keep: changes-new
create trigger pgtrigger_search_5c6d before insert or update of "title" on "blog_post"
  for each row execute procedure tsvector_update_trigger("search", 'pg_catalog.english', "title");
create or replace function pgtrigger_readonly_7e8f() returns trigger as $$
begin
  raise exception 'pgtrigger: Cannot update rows from % table', tg_table_name;
end;
$$ language plpgsql;
-- = keep: raises
-- Because: one column may be written once only.
create trigger pgtrigger_readonly_7e8f before update on "shop_item"
  for each row when (old."id" is distinct from new."id") execute procedure pgtrigger_readonly_7e8f();
-- = keep: raises
-- Because: an event table that forbids its own change is protected, and the protection itself stays while the table does.
create trigger append_only before update or delete on "blog_postevent"
  for each row execute procedure pgtrigger_readonly_7e8f();
