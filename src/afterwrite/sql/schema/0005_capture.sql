-- What capture remembers beside the database that it reads, so that nothing leaves the stream unseen; and which store
-- this is, so that no other one takes its slot by mistake.

create table afterwrite.store (
    only_row boolean     not null default true,
    id       uuid        not null default gen_random_uuid(),
    made_at  timestamptz not null default clock_timestamp(),
    constraint store_pkey primary key (only_row),
    constraint store_has_one_row check (only_row)
);
comment on table afterwrite.store is
    'Which store this is. Counts only in the database where the activities are; a restored or moved store stays the same one.';
insert into afterwrite.store default values;

create table afterwrite.capture (
    slot       text   not null,
    source     text   not null,
    store      text   not null,
    since_lsn  pg_lsn not null,
    intact_lsn pg_lsn not null,
    constraint capture_pkey primary key (slot),
    constraint capture_seen_intact_since check (since_lsn <= intact_lsn)
);
comment on table afterwrite.capture is 'One row a slot of ours in this database: whose it is, and since when it captures.';
comment on column afterwrite.capture.store is 'afterwrite.store.id of the one store that owns the slot and its acknowledgements.';
comment on column afterwrite.capture.intact_lsn is
    'Up to here the publications were seen to be as they should; where they are found otherwise, what is missing was written after it.';

create table afterwrite.publication (
    slot    text not null,
    name    text not null,
    oid     oid  not null,
    version text not null,
    options text not null,
    constraint publication_pkey primary key (slot, name),
    constraint publication_slot foreign key (slot) references afterwrite.capture (slot) on delete cascade
);
comment on table afterwrite.publication is 'The publications of a slot, as `afterwrite install` left them.';
comment on column afterwrite.publication.oid is 'One that was dropped and made again has another.';
comment on column afterwrite.publication.version is
    'Its row version in pg_publication: one whose options were altered and set back has another, and what was written between may be missing.';

create table afterwrite.published (
    slot        text   not null,
    publication text   not null,
    relation    oid    not null,
    membership  oid    not null,
    schema      text   not null,
    name        text   not null,
    key         text[] not null,
    since_lsn   pg_lsn not null,
    constraint published_pkey primary key (slot, publication, relation),
    constraint published_publication foreign key (slot, publication)
        references afterwrite.publication (slot, name) on delete cascade
);
comment on table afterwrite.published is 'The tables that a publication of ours lists, as `afterwrite install` left them.';
comment on column afterwrite.published.membership is
    'The oid in pg_publication_rel: a table that was taken out and put back has another, and what was written between is not captured.';
comment on column afterwrite.published.key is 'The columns of its primary key; empty where it has none.';
comment on column afterwrite.published.since_lsn is 'Its changes are captured from here on.';

create table afterwrite.open_gap (
    id         bigint generated always as identity,
    slot       text        not null,
    source     text        not null,
    kind       text        not null,
    from_lsn   pg_lsn      not null,
    to_lsn     pg_lsn,
    reason     text        not null,
    noticed_at timestamptz not null default clock_timestamp(),
    constraint open_gap_pkey primary key (id),
    constraint open_gap_kind check (kind in ('given up', 'begun anew', 'taken over', 'unpublished')),
    constraint open_gap_says_why check (reason <> '')
);
comment on table afterwrite.open_gap is
    'Losses that the store does not know of yet: written here before the deed, since the store may be the very thing that is down. `afterwrite install --apply` moves them into its table gap.';
comment on column afterwrite.open_gap.to_lsn is 'Null while the loss goes on.';
create unique index open_gap_one_of_a_kind on afterwrite.open_gap (slot, kind);
comment on index afterwrite.open_gap_one_of_a_kind is 'The same loss noticed again is the same loss.';

create function afterwrite.publication_options(publication oid) returns text language sql stable set search_path = pg_catalog as $$
    select concat_ws(
        ', ',
        case when p.puballtables then 'all tables' end,
        case when p.pubinsert then 'insert' end,
        case when p.pubupdate then 'update' end,
        case when p.pubdelete then 'delete' end,
        case when p.pubtruncate then 'truncate' end,
        case when p.pubviaroot then 'via root' end,
        case when to_jsonb(p) ->> 'pubgencols' = 's' then 'generated columns' end
    )
      from pg_publication p
     where p.oid = publication
$$;
comment on function afterwrite.publication_options(oid) is 'What a publication publishes, in words that can be compared.';

create function afterwrite.lists_us(publication oid) returns boolean language plpgsql stable set search_path = pg_catalog as $$
begin
    -- Before PostgreSQL 15 there is no such catalog; what is not run is not looked up.
    return current_setting('server_version_num')::int >= 150000
       and exists (select
                     from pg_publication_namespace s
                     join pg_namespace n on n.oid = s.pnnspid
                    where s.pnpubid = publication and n.nspname = 'afterwrite');
end
$$;
comment on function afterwrite.lists_us(oid) is 'Whether a publication lists our schema as a whole.';

create view afterwrite.departure as
select b.slot, b.name as publication, null::text as relation,
       case
           when now.oid is null then 'publication gone'
           when now.oid <> b.oid then 'publication replaced'
           else 'publication altered'
       end as kind,
       case when now.oid = b.oid then afterwrite.publication_options(now.oid) end as found,
       b.options as expected
  from afterwrite.publication b
  left join pg_catalog.pg_publication now on now.pubname = b.name
 where now.oid is distinct from b.oid
    or now.xmin::text is distinct from b.version
    or afterwrite.publication_options(now.oid) is distinct from b.options
 union all
select t.slot, t.publication, pg_catalog.format('%I.%I', coalesce(n.nspname, t.schema), coalesce(c.relname, t.name)),
       case
           when c.oid is null and other.oid is not null then 'table replaced'
           when c.oid is null then 'table dropped'
           when r.oid is null then 'table missing'
           when to_jsonb(r) ->> 'prqual' is not null then 'table filtered'
           when to_jsonb(r) ->> 'prattrs' is not null then 'table narrowed'
           else 'table put back'
       end,
       null, null
  from afterwrite.published t
  join pg_catalog.pg_publication p on p.pubname = t.publication
  left join pg_catalog.pg_class c on c.oid = t.relation
  left join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  left join pg_catalog.pg_publication_rel r on r.prpubid = p.oid and r.prrelid = t.relation
  left join lateral (
       select o.oid
         from pg_catalog.pg_class o
         join pg_catalog.pg_namespace s on s.oid = o.relnamespace
        where c.oid is null and s.nspname = t.schema and o.relname = t.name and o.relkind in ('r', 'p')
          and not exists (select from pg_catalog.pg_publication_rel l where l.prpubid = p.oid and l.prrelid = o.oid)
       ) other on true
 where c.oid is null
    or r.oid is distinct from t.membership
    or to_jsonb(r) ->> 'prqual' is not null
    or to_jsonb(r) ->> 'prattrs' is not null
 union all
select t.slot, t.publication, pg_catalog.format('%I.%I', n.nspname, c.relname), 'table without identity', null, null
  from afterwrite.published t
  join pg_catalog.pg_publication p on p.pubname = t.publication and (p.pubupdate or p.pubdelete)
  join pg_catalog.pg_publication_rel r on r.prpubid = p.oid and r.prrelid = t.relation
  join pg_catalog.pg_class c on c.oid = t.relation and c.relkind = 'r' and c.relreplident <> 'f'
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where not exists (select from pg_catalog.pg_index i
                    where i.indrelid = c.oid
                      and (c.relreplident = 'd' and i.indisprimary or c.relreplident = 'i' and i.indisreplident))
 union all
select t.slot, t.publication, pg_catalog.format('%I.%I', n.nspname, c.relname), 'partition not logged', null, null
  from (
       -- From the few that are so up to their roots, and not down from each root.
       with recursive up (leaf, oid) as (
           select l.oid, i.inhparent
             from pg_catalog.pg_class l
             join pg_catalog.pg_inherits i on i.inhrelid = l.oid
            where l.relispartition and (l.relpersistence = 'u' or l.relkind = 'f')
            union all
           select u.leaf, i.inhparent from up u join pg_catalog.pg_inherits i on i.inhrelid = u.oid
       )
       select leaf, oid from up
       ) u
  join afterwrite.published t on t.relation = u.oid
  join pg_catalog.pg_class c on c.oid = u.leaf
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 union all
select d.slot, d.publication, pg_catalog.format('%I.%I', n.nspname, c.relname), 'partition not whole', null, null
  from (
       -- A partition is born with its own replica identity, whatever its root's is.
       with recursive down (slot, publication, oid) as (
           select t.slot, t.publication, t.relation
             from afterwrite.published t
             join pg_catalog.pg_class r on r.oid = t.relation and r.relkind = 'p' and r.relreplident = 'f'
            union all
           select d.slot, d.publication, i.inhrelid from down d join pg_catalog.pg_inherits i on i.inhparent = d.oid
       )
       select slot, publication, oid from down
       ) d
  join pg_catalog.pg_class c on c.oid = d.oid and c.relkind = 'r' and c.relreplident <> 'f'
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 union all
select b.slot, b.name, null, 'store listed', null, null
  from afterwrite.publication b
  join pg_catalog.pg_publication p on p.pubname = b.name
 where afterwrite.lists_us(p.oid)
 union all
select b.slot, b.name, pg_catalog.format('afterwrite.%I', c.relname), 'store listed', null, null
  from afterwrite.publication b
  join pg_catalog.pg_publication p on p.pubname = b.name
  join pg_catalog.pg_publication_rel r on r.prpubid = p.oid
  join pg_catalog.pg_class c on c.oid = r.prrelid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where n.nspname = 'afterwrite';
comment on view afterwrite.departure is
    'Where the publications are no longer as `afterwrite install` left them. Empty is well; a dropped table is no loss.';
