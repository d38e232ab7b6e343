-- GitLab-like: loose foreign keys, write locks, sharding keys, sync events, copies for new partitioned tables.

create table namespaces (id bigint primary key, name text, traversal_ids bigint[] default '{}');
create table members (id bigint primary key, namespace_id bigint references namespaces);
create table projects (id bigint primary key, name text, namespace_id bigint, project_namespace_id bigint,
  has_external_wiki boolean default false);
create table issues (id bigint primary key, project_id bigint, title text, namespace_id bigint);
create table issue_links (id bigint primary key, issue_id bigint, project_id bigint);
create table integrations (id bigint primary key, project_id bigint, type_new text, active boolean);

create table loose_foreign_keys_deleted_records (
  id bigserial not null, partition bigint default 1 not null, primary_key_value bigint not null, status smallint default 1 not null,
  created_at timestamptz default now() not null, fully_qualified_table_name text not null,
  consume_after timestamptz default now(), cleanup_attempts smallint default 0
) partition by list (partition);
create table loose_foreign_keys_deleted_records_1 partition of loose_foreign_keys_deleted_records for values in (1);
create function insert_into_loose_foreign_keys_deleted_records() returns trigger language plpgsql as $$
begin
  insert into loose_foreign_keys_deleted_records (fully_qualified_table_name, primary_key_value)
  select tg_table_schema || '.' || tg_table_name, old_table.id from old_table;
  return null;
end $$;
-- = defer: writes-other-table
-- Because: it names table and key like an audit log, and is a queue: a worker deletes the children that it tells of.
create trigger projects_loose_fk_trigger after delete on projects
  referencing old table as old_table for each statement execute function insert_into_loose_foreign_keys_deleted_records();
create function insert_into_loose_foreign_keys_deleted_records_override_table() returns trigger language plpgsql as $$
begin
  insert into loose_foreign_keys_deleted_records (fully_qualified_table_name, primary_key_value)
  select current_schema() || '.' || tg_argv[0], old_table.id from old_table;
  return null;
end $$;
-- = defer: writes-other-table
create trigger issues_loose_fk_trigger after delete on issues referencing old table as old_table
  for each statement execute function insert_into_loose_foreign_keys_deleted_records_override_table('work_items');

create table ci_builds (id bigint primary key, status text);
create function gitlab_schema_prevent_write() returns trigger language plpgsql as $$
begin
  if coalesce(nullif(current_setting(concat('lock_writes.', tg_table_name), true), ''), 'true') then
    raise exception 'Table: "%" is write protected within this Gitlab database.', tg_table_name
      using errcode = 'modifying_sql_data_not_permitted', hint = 'Make sure you are using the right database connection';
  end if;
  return new;
end $$;
-- = keep: raises
-- Because: it forbids writes on the wrong database.
create trigger gitlab_schema_write_trigger_for_ci_builds before insert or delete or update or truncate on ci_builds
  for each statement execute function gitlab_schema_prevent_write();

create function issue_links_sharding_key() returns trigger language plpgsql as $$
begin
  if new."project_id" is null then
    select "project_id" into new."project_id" from "issues" where "issues"."id" = new."issue_id";
  end if;
  return new;
end $$;
-- = keep: changes-new
create trigger issue_links_sharding_key before insert or update on issue_links
  for each row execute function issue_links_sharding_key();

create table projects_sync_events (id bigserial primary key, project_id bigint not null);
create function insert_projects_sync_event() returns trigger language plpgsql as $$
begin
  insert into projects_sync_events (project_id) values (coalesce(new.id, old.id));
  return null;
end $$;
-- = defer: writes-other-table
-- Because: a worker takes these rows away and synchronises.
create trigger trigger_projects_parent_id_on_insert after insert on projects
  for each row execute function insert_projects_sync_event();
-- = defer: writes-other-table
create trigger trigger_projects_parent_id_on_update after update on projects
  for each row when (old.namespace_id is distinct from new.namespace_id) execute function insert_projects_sync_event();

create function set_has_external_wiki() returns trigger language plpgsql as $$
begin
  update projects
     set has_external_wiki = coalesce(
       (select true from integrations where project_id = coalesce(new.project_id, old.project_id) and type_new = 'ExternalWiki'
          and active limit 1), false)
   where projects.id = coalesce(new.project_id, old.project_id);
  return null;
end $$;
-- = defer: writes-other-table
-- Because: a flag that is derived from the integrations.
create trigger trigger_has_external_wiki_on_type_new_updated after insert or update or delete on integrations
  for each row execute function set_has_external_wiki();

create function delete_associated_project_namespace() returns trigger language plpgsql as $$
begin
  delete from namespaces where namespaces.id = old.project_namespace_id;
  return null;
end $$;
-- = keep: enforced-target
-- Because: members may still refer to the namespace, and then the project's DELETE is refused.
create trigger trigger_delete_project_namespace_on_project_delete after delete on projects
  for each row when (old.project_namespace_id is not null) execute function delete_associated_project_namespace();

create table merge_requests (id bigint primary key, title text, state text);
create table merge_requests_part (id bigint not null, title text, state text, primary key (id)) partition by range (id);
create table merge_requests_part_1 partition of merge_requests_part default;
create function table_sync_function_merge_requests() returns trigger language plpgsql as $$
begin
  if (tg_op = 'DELETE') then
    delete from merge_requests_part where "id" = old."id";
  elsif (tg_op = 'UPDATE') then
    update merge_requests_part set "title" = new."title", "state" = new."state" where merge_requests_part."id" = new."id";
  elsif (tg_op = 'INSERT') then
    insert into merge_requests_part ("id", "title", "state") values (new."id", new."title", new."state");
  end if;
  return null;
end $$;
-- = defer: writes-other-table
-- Because: a copy for a table that will take over; it is not read before the switch.
create trigger table_sync_trigger_merge_requests after delete or insert or update on merge_requests
  for each row execute function table_sync_function_merge_requests();

create table events (id bigint primary key, id_convert_to_bigint bigint default 0 not null, action text);
create function trigger_69523443cc10() returns trigger language plpgsql as $$
begin
  new."id_convert_to_bigint" := new."id";
  return new;
end $$;
-- = keep: changes-new
create trigger trigger_69523443cc10 before insert or update on events for each row execute function trigger_69523443cc10();

create function namespaces_traversal() returns trigger language plpgsql as $$
begin
  if new.traversal_ids = '{}' then
    execute 'update namespaces set traversal_ids = array[$1] where id = $1' using new.id;
  end if;
  return null;
end $$;
-- = keep: writes-own-table
-- Because: the row is completed by its own trigger, as part of the write.
create trigger namespaces_traversal after insert on namespaces for each row execute function namespaces_traversal();

create table vulnerability_reads (vulnerability_id bigint primary key, severity int, state int);
create table vulnerabilities (id bigint primary key, severity int, state int);
create function update_vulnerability_reads_from_vulnerability() returns trigger language plpgsql as $$
begin
  update vulnerability_reads set severity = new.severity, state = new.state where vulnerability_id = new.id;
  return null;
end $$;
-- = defer: writes-other-table
create trigger trigger_update_vulnerability_reads_on_vulnerability_update after update on vulnerabilities
  for each row when (old.severity is distinct from new.severity or old.state is distinct from new.state)
  execute function update_vulnerability_reads_from_vulnerability();
create table audit_events (id bigserial primary key, author_id bigint, entity_type text, entity_id bigint, details text,
  created_at timestamptz default now());
create function audit_project_name() returns trigger language plpgsql as $$
begin
  insert into audit_events (author_id, entity_type, entity_id, details)
  values (nullif(current_setting('gitlab.user', true), '')::bigint, 'Project', new.id, old.name || ' -> ' || new.name);
  return null;
end $$;
-- = retire: appends-to-log
-- Because: named like a log and like a queue at once; what it holds is who renamed what.
create trigger audit_project_name after update of name on projects
  for each row when (old.name is distinct from new.name) execute function audit_project_name();
