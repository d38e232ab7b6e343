-- Derived data: search vectors and documents, copies, sums, materialized views, partition routers, soft delete.

create table article (id int primary key, title text, body text, words tsvector, tags text[], author_id int, slug text, deleted_at timestamptz);

-- Search. ------------------------------------------------------------------------------------------------------------------
create function article_words() returns trigger language plpgsql as $$
begin
  new.words := setweight(to_tsvector('pg_catalog.english', coalesce(new.title, '')), 'A')
            || setweight(to_tsvector('pg_catalog.english', coalesce(new.body, '')), 'D');
  return new;
end $$;
-- = keep: changes-new
create trigger article_words before insert or update on article for each row execute function article_words();
create table article_search (article_id int primary key, words tsvector, tags text[]);
create index on article_search using gin (words);
create function article_to_search() returns trigger language plpgsql as $$
begin
  if tg_op = 'DELETE' then
    delete from article_search where article_id = old.id;
    return old;
  end if;
  insert into article_search as s (article_id, words, tags)
  values (new.id, to_tsvector('simple', new.title || ' ' || new.body), new.tags)
  on conflict (article_id) do update set words = excluded.words, tags = excluded.tags where s.words is distinct from excluded.words;
  return new;
end $$;
-- = defer: writes-other-table
-- Because: a search index; a search may miss the article for a moment.
create trigger article_to_search after insert or update or delete on article for each row execute function article_to_search();
create table tag_count (tag text primary key, n int);
create function article_tags() returns trigger language plpgsql as $$
begin
  insert into tag_count (tag, n) select t, count(*) from after_rows, unnest(tags) t group by t
  on conflict (tag) do update set n = tag_count.n + excluded.n;
  return null;
end $$;
-- = defer: writes-other-table
create trigger article_tags after insert on article referencing new table as after_rows
  for each statement execute function article_tags();
create table search_index_queue (article_id int, op text, enqueued_at timestamptz default now());
create function article_reindex() returns trigger language plpgsql as $$
begin
  insert into search_index_queue (article_id, op) values (coalesce(new.id, old.id), tg_op);
  return null;
end $$;
-- = defer: writes-other-table
-- Because: a queue of the search engine's.
create trigger article_reindex after insert or update or delete on article for each row execute function article_reindex();

-- Copies, up and down. --------------------------------------------------------------------------------------------------------
create table author (id int primary key, name text, articles int default 0, last_title text);
create table article_card (article_id int, author_name text, title text);
create function author_to_cards() returns trigger language plpgsql as $$
begin
  update article_card c set author_name = new.name from article a where a.id = c.article_id and a.author_id = new.id;
  return null;
end $$;
-- = defer: writes-other-table
create trigger author_to_cards after update of name on author
  for each row when (old.name is distinct from new.name) execute function author_to_cards();
create function article_to_author() returns trigger language plpgsql as $$
begin
  update author set articles = (select count(*) from article where author_id = new.author_id), last_title = new.title where id = new.author_id;
  return null;
end $$;
-- = defer: writes-other-table
create trigger article_to_author after insert or update on article for each row execute function article_to_author();

create table cart (id int primary key, total numeric, locked boolean default false, items int default 0);
create table cart_item (id int primary key, cart_id int, price numeric, qty int);
create function cart_locked() returns trigger language plpgsql as $$
begin
  if old.locked and new.total is distinct from old.total then
    raise exception 'cart % is locked', new.id;
  end if;
  return new;
end $$;
-- = keep: raises
create trigger cart_locked before update on cart for each row execute function cart_locked();
create function cart_total() returns trigger language plpgsql as $$
begin
  update cart set total = (select sum(price * qty) from cart_item where cart_id = coalesce(new.cart_id, old.cart_id))
   where id = coalesce(new.cart_id, old.cart_id);
  return null;
end $$;
-- = keep: enforced-target|sets-off-a-keeper
-- Because: the sum is refused when the cart is locked, and with it the item: that is how items are kept out of locked carts.
create trigger cart_total after insert or update or delete on cart_item for each row execute function cart_total();
create function cart_items() returns trigger language plpgsql as $$
begin
  update cart set items = items + 1 where id = new.cart_id;
  return null;
end $$;
-- = defer: writes-other-table
-- Because: the guard of the cart looks at total only.
create trigger cart_items after insert on cart_item for each row execute function cart_items();

create table warehouse (item int primary key, qty int not null, constraint enough check (qty >= 0));
create function take_from_warehouse() returns trigger language plpgsql as $$
begin
  update warehouse set qty = qty - new.qty where item = new.id;
  if not found then
    insert into warehouse (item, qty) values (new.id, 0);
  end if;
  return null;
end $$;
-- = keep: enforced-target
-- Because: the CHECK refuses the item that is not in stock.
create trigger take_from_warehouse after insert on cart_item for each row execute function take_from_warehouse();

-- Materialized views. ---------------------------------------------------------------------------------------------------------
create materialized view author_board as select author_id, count(*) as n from article group by author_id;
create unique index on author_board (author_id);
create function refresh_board() returns trigger language plpgsql as $$
begin
  refresh materialized view concurrently author_board;
  return null;
end $$;
-- = defer: writes-other-table
create trigger refresh_board after insert or update or delete or truncate on article
  for each statement execute function refresh_board();
create function refresh_named() returns trigger language plpgsql as $$
begin
  execute 'refresh materialized view ' || quote_ident(tg_argv[0]);
  return null;
end $$;
-- = defer: writes-other-table
create trigger refresh_named after insert on author for each statement execute function refresh_named('author_board');

-- Partition routers. ------------------------------------------------------------------------------------------------------------
create table measurement (city int not null, logdate date not null, peak int);
create table measurement_y2024 (check (logdate >= '2024-01-01' and logdate < '2025-01-01')) inherits (measurement);
create table measurement_y2025 (check (logdate >= '2025-01-01' and logdate < '2026-01-01')) inherits (measurement);
create function measurement_insert() returns trigger language plpgsql as $$
begin
  if new.logdate >= date '2024-01-01' and new.logdate < date '2025-01-01' then
    insert into measurement_y2024 values (new.*);
  elsif new.logdate >= date '2025-01-01' and new.logdate < date '2026-01-01' then
    insert into measurement_y2025 values (new.*);
  else
    raise exception 'date out of range: fix the measurement_insert() function';
  end if;
  return null;
end $$;
-- = keep: cancels-row
-- Because: the row goes into the child instead of the parent.
create trigger measurement_insert before insert on measurement for each row execute function measurement_insert();
create table reading (id int, at timestamptz, v int);
create function reading_route() returns trigger language plpgsql as $$
declare
  child text := 'reading_' || to_char(new.at, 'YYYYMM');
begin
  if to_regclass(child) is null then
    execute format('create table %I (check (date_trunc(''month'', at) = %L)) inherits (reading)', child, date_trunc('month', new.at));
  end if;
  execute format('insert into %I values ($1.*)', child) using new;
  return null;
end $$;
-- = keep: cancels-row
-- Because: dynamic or not, it returns NULL: the row does not reach the parent.
create trigger reading_route before insert on reading for each row execute function reading_route();
create table event_raw (id int, at timestamptz default now());
create function event_raw_empty() returns trigger language plpgsql as $$
begin
  delete from only event_raw where id = new.id;
  return null;
end $$;
-- = keep: writes-own-table
-- Because: it takes the row out of the parent again, into which it was written for RETURNING's sake.
create trigger event_raw_empty after insert on event_raw for each row execute function event_raw_empty();
create table trace (id int, day date) partition by range (day);
create table trace_2025 partition of trace for values from ('2025-01-01') to ('2026-01-01');
create function trace_make_partition() returns trigger language plpgsql as $$
begin
  execute format('create table if not exists trace_%s partition of trace for values from (%L) to (%L)',
    to_char(now(), 'YYYY'), date_trunc('year', now()), date_trunc('year', now()) + interval '1 year');
  return null;
end $$;
-- = review: runs-commands|dynamic-sql
-- Because: it makes the partition that the very row may need; nobody can move that without looking.
create trigger trace_make_partition before insert on trace for each statement execute function trace_make_partition();

-- Soft delete. ------------------------------------------------------------------------------------------------------------------
create function article_soft() returns trigger language plpgsql as $$
begin
  update article set deleted_at = now() where id = old.id and deleted_at is null;
  return null;
end $$;
-- = keep: cancels-row
create trigger article_soft before delete on article for each row execute function article_soft();
create table remark (id int primary key, article_id int, parent_id int, deleted_at timestamptz);
create function article_soft_cascade() returns trigger language plpgsql as $$
begin
  update remark set deleted_at = new.deleted_at where article_id = new.id and deleted_at is null;
  return null;
end $$;
-- = defer: writes-other-table
-- Because: remarks are hidden a moment after their article.
create trigger article_soft_cascade after update of deleted_at on article
  for each row when (old.deleted_at is null and new.deleted_at is not null) execute function article_soft_cascade();
create function remark_soft_cascade() returns trigger language plpgsql as $$
begin
  update remark set deleted_at = new.deleted_at where parent_id = new.id and deleted_at is null;
  return null;
end $$;
-- = keep: writes-own-table
-- Because: the branch of the tree is one thing.
create trigger remark_soft_cascade after update of deleted_at on remark for each row execute function remark_soft_cascade();
create function no_change_when_deleted() returns trigger language plpgsql as $$
begin
  if old.deleted_at is not null and new.deleted_at is not null then
    raise exception 'row % is deleted', old.id;
  end if;
  return new;
end $$;
-- = keep: raises
create trigger no_change_when_deleted before update on remark for each row execute function no_change_when_deleted();
create table remark_deletions (remark_id int, deleted_at timestamptz, by_whom text default current_user, op text);
create function remark_note_deletion() returns trigger language plpgsql as $$
begin
  insert into remark_deletions (remark_id, deleted_at, op) values (new.id, new.deleted_at, tg_op);
  return null;
end $$;
-- = retire: appends-to-log
-- Because: who deleted what and when, and nothing more.
create trigger remark_note_deletion after update of deleted_at on remark
  for each row when (new.deleted_at is not null) execute function remark_note_deletion();
