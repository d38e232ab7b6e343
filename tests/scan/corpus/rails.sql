-- Rails: hairtrigger counters, logidze, versions, positions, touch, numbering inside a parent, and renamed columns.

create table posts (id bigint primary key, title text, comments_count int default 0, updated_at timestamptz, blog_id bigint,
  number int, position int, log_data jsonb, last_comment_id bigint, upper_title text);
create table blogs (id bigint primary key, posts_count int default 0, updated_at timestamptz);
create table comments (id bigint primary key, post_id bigint, body text, created_at timestamptz default now());
alter table posts add foreign key (last_comment_id) references comments (id);
create table versions (
  id bigserial primary key, item_type text not null, item_id bigint not null, event text not null, whodunnit text,
  object jsonb, object_changes jsonb, created_at timestamptz
);

create function comments_after_insert_row_tr() returns trigger language plpgsql as $$
begin
  update posts set comments_count = comments_count + 1 where posts.id = new.post_id;
  return null;
end $$;
-- = defer: writes-other-table
-- Because: a counter cache, which Rails itself counts as stale now and then.
create trigger comments_after_insert_row_tr after insert on comments
  for each row execute function comments_after_insert_row_tr();
create function comments_after_delete_row_tr() returns trigger language plpgsql as $$
begin
  update posts set comments_count = greatest(comments_count - 1, 0) where id = old.post_id;
  return null;
end $$;
-- = defer: writes-other-table
create trigger comments_after_delete_row_tr after delete on comments
  for each row execute function comments_after_delete_row_tr();
create function comments_forget_last() returns trigger language plpgsql as $$
begin
  update posts set last_comment_id = null where last_comment_id = old.id;
  return old;
end $$;
-- = keep: feeds-a-foreign-key
-- Because: posts.last_comment_id refers to the comment; without the trigger its DELETE is refused.
create trigger comments_forget_last before delete on comments for each row execute function comments_forget_last();
create function comments_remember_last() returns trigger language plpgsql as $$
begin
  update posts set last_comment_id = new.id where id = new.post_id;
  return null;
end $$;
-- = defer: writes-other-table
-- Because: the pointer to the latest comment may follow.
create trigger comments_remember_last after insert on comments for each row execute function comments_remember_last();

create function posts_touch_blog() returns trigger language plpgsql as $$
begin
  update blogs set updated_at = clock_timestamp() where id in (new.blog_id, old.blog_id);
  return null;
end $$;
-- = defer: writes-other-table
-- Because: a cache key; caches live a moment longer.
create trigger posts_touch_blog after insert or update or delete on posts for each row execute function posts_touch_blog();

create function posts_number() returns trigger language plpgsql as $$
begin
  select coalesce(max(number), 0) + 1 into new.number from posts where blog_id = new.blog_id;
  return new;
end $$;
-- = keep: changes-new
create trigger posts_number before insert on posts for each row when (new.number is null) execute function posts_number();

create function posts_make_room() returns trigger language plpgsql as $$
begin
  update posts set position = position + 1 where blog_id = new.blog_id and position >= new.position and id <> new.id;
  return null;
end $$;
-- = keep: writes-own-table
-- Because: the order of the siblings is part of the write.
create trigger posts_make_room after insert on posts
  for each row when (pg_trigger_depth() < 1) execute function posts_make_room();

create function versions_of_row() returns trigger language plpgsql as $$
declare
  changes jsonb := '{}'::jsonb;
  field record;
begin
  if tg_op = 'UPDATE' then
    for field in select key, value from jsonb_each(to_jsonb(new)) loop
      if field.value is distinct from to_jsonb(old) -> field.key then
        changes := jsonb_set(changes, array[field.key], jsonb_build_array(to_jsonb(old) -> field.key, field.value));
      end if;
    end loop;
    if changes = '{}'::jsonb then
      return null;
    end if;
  end if;
  insert into versions (item_type, item_id, event, whodunnit, object, object_changes, created_at)
  values (
    tg_argv[0], coalesce(new.id, old.id), case tg_op when 'INSERT' then 'create' when 'DELETE' then 'destroy' else 'update' end,
    current_setting('app.whodunnit', true), to_jsonb(old), nullif(changes, '{}'::jsonb), now()
  );
  return null;
end $$;
-- = retire: appends-to-log
create trigger versions_of_row after insert or update or delete on posts for each row execute function versions_of_row('Post');

create function logidze_like() returns trigger language plpgsql as $$
declare
  changes jsonb;
  version jsonb;
begin
  changes := to_jsonb(new.*) - 'log_data';
  if tg_op = 'INSERT' then
    new.log_data := jsonb_build_object('v', 1, 'h', jsonb_build_array(jsonb_build_object('ts', now(), 'v', 1, 'c', changes)));
  elsif tg_op = 'UPDATE' then
    if coalesce(current_setting('logidze.disabled', true), '') = 'on' or old.log_data is null then
      return new;
    end if;
    version := jsonb_build_object('ts', now(), 'v', (old.log_data ->> 'v')::int + 1, 'c', changes - 'updated_at');
    new.log_data := jsonb_set(old.log_data, '{h}', (old.log_data -> 'h') || version) || jsonb_build_object('v', version -> 'v');
  end if;
  return new;
end $$;
-- = keep: changes-new
-- Because: it looks like a log and is one, but it lives in a column of the row itself.
create trigger logidze_on_posts before insert or update on posts
  for each row when (coalesce(current_setting('logidze.disabled', true), '') <> 'on') execute function logidze_like();

create function posts_renamed_column() returns trigger language plpgsql as $$
begin
  if tg_op = 'INSERT' or new.title is distinct from old.title then
    new."upper_title" := upper(new.title);
  end if;
  return new;
end $$;
-- = keep: changes-new
create trigger posts_renamed_column before insert or update on posts for each row execute function posts_renamed_column();

-- A tree's closure table, which the application reads for its menus.
create table categories (id bigint primary key, parent_id bigint, name text);
create table category_hierarchies (ancestor_id bigint, descendant_id bigint, generations int);
create function categories_closure() returns trigger language plpgsql as $$
begin
  insert into category_hierarchies (ancestor_id, descendant_id, generations)
  select ancestor_id, new.id, generations + 1 from category_hierarchies where descendant_id = new.parent_id
  union all select new.id, new.id, 0;
  return null;
end $$;
-- = defer: writes-other-table
-- Because: each row is made from the parent's rows; in commit order the same comes out, a moment later.
create trigger categories_closure after insert on categories for each row execute function categories_closure();
create function categories_no_circle() returns trigger language plpgsql as $$
begin
  if exists (select from category_hierarchies where ancestor_id = new.id and descendant_id = new.parent_id) then
    raise exception 'a category cannot be its own ancestor';
  end if;
  return new;
end $$;
create table sections (id bigint primary key, parent_id bigint);
create table section_hierarchies (ancestor_id bigint, descendant_id bigint, generations int);
create function sections_closure() returns trigger language plpgsql as $$
begin
  insert into section_hierarchies (ancestor_id, descendant_id, generations)
  select ancestor_id, new.id, generations + 1 from section_hierarchies where descendant_id = new.parent_id
  union all select new.id, new.id, 0;
  return null;
end $$;
-- = keep: feeds-a-keeper
-- Because: the same closure table, but here another trigger looks into it for circles.
create trigger sections_closure after insert on sections for each row execute function sections_closure();
create function sections_no_circle() returns trigger language plpgsql as $$
begin
  if exists (select from section_hierarchies where ancestor_id = new.id and descendant_id = new.parent_id) then
    raise exception 'a section cannot be its own ancestor';
  end if;
  return new;
end $$;
-- = keep: raises
create trigger sections_no_circle before update on sections for each row execute function sections_no_circle();

-- Uniqueness over two tables, by a table of names.
create table slugs (slug text not null, sluggable_type text not null, sluggable_id bigint, primary key (slug, sluggable_type));
create table pages (id bigint primary key, slug text);
create function pages_slug() returns trigger language plpgsql as $$
begin
  insert into slugs (slug, sluggable_type, sluggable_id) values (new.slug, 'Page', new.id);
  return null;
end $$;
-- = keep: enforced-target
-- Because: a slug that is taken refuses the page.
create trigger pages_slug after insert on pages for each row execute function pages_slug();
