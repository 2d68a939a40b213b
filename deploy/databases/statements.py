"""The SQL of the database per colour, by name. Values go in as parameters, names as psycopg2.sql.Identifier.

All that PostgreSQL would look up by search_path is qualified, as the guard runs with the search_path of whoever writes.
"""

# 7220001 is the advisory lock that every writing transaction shares, and that the switch takes alone:
# https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS. It is per database.
LOCK = 7220001
FENCED = "BG001"  # the SQLSTATE of a write that the fence refused

# --- State: who writes, which attempt to switch is under way, and how far it has come ---------------------------------

# A sequence is the fence as its value is no row: a snapshot taken before the switch sees the value of now.
SCHEMA = f"""
create schema if not exists bg;
create sequence if not exists bg.fence minvalue 0 start 0;
create table if not exists bg.state (
  one boolean primary key default true check (one),
  attempt bigint not null default 0,
  phase text not null default 'standby' check (phase in ('standby', 'active', 'fencing', 'committing', 'target')),
  deadline timestamptz,
  catalog text
);
create table if not exists bg.heartbeat (colour text primary key, marker uuid not null, at timestamptz not null);
create or replace function bg.enter() returns void language plpgsql as $$
begin
  perform pg_catalog.pg_advisory_xact_lock_shared({LOCK});
  if (select last_value from bg.fence) operator(pg_catalog.<>) 1
    and coalesce(pg_catalog.current_setting('bg.bypass', true), '') operator(pg_catalog.<>) 'on' then
    raise exception 'fenced: the other colour writes' using errcode = '{FENCED}';
  end if;
end
$$;
create or replace function bg.guard() returns trigger language plpgsql as $$
begin
  perform bg.enter();
  return null;
end
$$;
grant usage on schema bg to public;
grant select on sequence bg.fence to public;
"""
INSERT_STATE = "insert into bg.state (phase) values (%s) on conflict do nothing"
SET_FENCE = "select setval('bg.fence', %s)"
READ_STATE = "select (select last_value from bg.fence) = 1, attempt, phase from bg.state"
INSTALLED = "select to_regclass('bg.state') is not null"

# --- Fence: the guard on every table ----------------------------------------------------------------------------------

CREATE_GUARD = """
set local lock_timeout = {timeout};
create or replace trigger bg_guard before insert or update or delete or truncate on {table}
  for each statement execute function bg.guard()
"""
# Tables and partitions, parents included: a statement fires the triggers of the table that it names.
UNGUARDED = """
select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and c.relpersistence <> 't'
  and n.nspname not in ('bg', 'pg_catalog', 'information_schema') and n.nspname not like 'pg\\_%'
  and not exists (
    select from pg_trigger t join pg_proc p on p.oid = t.tgfoid
    where t.tgrelid = c.oid and t.tgname = 'bg_guard' and t.tgenabled in ('O', 'A') and t.tgtype = 62
      and t.tgqual is null and p.proname = 'guard' and p.pronamespace = to_regnamespace('bg')
  )
order by 1, 2
"""

# --- Heartbeats: how far the other side has come ----------------------------------------------------------------------

BEAT = """
insert into bg.heartbeat (colour, marker, at) values (%s, %s, clock_timestamp())
on conflict (colour) do update set marker = excluded.marker, at = excluded.at
"""
SEEN = "select marker::text = %s from bg.heartbeat where colour = %s"

# --- Catalogs: what preflight compares --------------------------------------------------------------------------------

# With this search_path all names but PostgreSQL's own are written with their schema.
_PLAIN = "select set_config('search_path', 'pg_catalog', true);"
# The relations that a release may change: not PostgreSQL's, not those of extensions, not `bg`.
_OURS = """
  n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'bg') and not exists (
    select from pg_depend as d
    where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
"""
_OURS_TABLES = f"""
  (select c.*, n.nspname from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
   where c.relkind in ('r', 'p') and c.relpersistence <> 't' and {_OURS})
"""
_NAMES = """
  (select coalesce(array_agg(a.attname::text order by listed.place), '{{}}')
   from unnest({numbers}) with ordinality as listed (number, place)
   join pg_attribute as a on a.attrelid = {table} and a.attnum = listed.number)
"""

DATABASE = """
select current_setting('server_version_num')::int, current_setting('server_encoding'),
  exists (select from pg_largeobject_metadata),
  (select coalesce(array_agg(extname::text order by extname), '{}') from pg_extension)
"""
TABLES = f"""
select t.oid::bigint, t.nspname, t.relname, t.relkind = 'p', pn.nspname, p.relname, t.relpersistence = 'u',
  t.relreplident, t.relrowsecurity and t.relforcerowsecurity
from {_OURS_TABLES} as t
left join pg_inherits as i on i.inhrelid = t.oid and t.relispartition
left join pg_class as p on p.oid = i.inhparent
left join pg_namespace as pn on pn.oid = p.relnamespace
order by t.nspname, t.relname
"""
# attmissingval stays after DROP DEFAULT, so it tells what ADD COLUMN ... DEFAULT gave the rows that were there.
COLUMNS = f"""{_PLAIN}
select a.attrelid::bigint, a.attname, a.attnum::int, format_type(a.atttypid, a.atttypmod),
  a.attnotnull or t.typnotnull,
  case when a.attgenerated = '' then coalesce(pg_get_expr(d.adbin, d.adrelid), t.typdefault) end,
  a.attidentity <> '', a.attgenerated <> '',
  case when a.attcollation <> t.typcollation then a.attcollation::regcollation::text else '' end,
  case when a.atthasmissing then (a.attmissingval::text::text[])[1] end
from pg_attribute as a
join {_OURS_TABLES} as o on o.oid = a.attrelid
join pg_type as t on t.oid = a.atttypid
left join pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
where a.attnum > 0 and not a.attisdropped
order by a.attrelid, a.attnum
"""
INDEXES = f"""{_PLAIN}
select x.indrelid::bigint, c.relname, {_NAMES.format(numbers="x.indkey[0:x.indnkeyatts - 1]", table="x.indrelid")},
  regexp_replace(pg_get_indexdef(x.indexrelid), '^.*? USING ', ''), x.indisunique or x.indisexclusion, x.indimmediate,
  x.indisprimary, x.indisreplident, exists (
    select from pg_constraint as k where k.conindid = x.indexrelid and k.conrelid = x.indrelid
    and k.contype in ('p', 'u', 'x')),
  0 = any (x.indkey)
from pg_index as x join {_OURS_TABLES} as o on o.oid = x.indrelid join pg_class as c on c.oid = x.indexrelid
where x.indisvalid
order by x.indrelid, c.relname
"""
CHECKS = f"""{_PLAIN}
select k.conrelid::bigint, k.conname, regexp_replace(pg_get_constraintdef(k.oid), ' NOT VALID$', '')
from pg_constraint as k join {_OURS_TABLES} as o on o.oid = k.conrelid
where k.contype = 'c' and k.conislocal
order by k.conrelid, k.conname
"""
FOREIGN_KEYS = f"""
select k.conrelid::bigint, k.conname, {_NAMES.format(numbers="k.conkey", table="k.conrelid")}, n.nspname, c.relname,
  {_NAMES.format(numbers="k.confkey", table="k.confrelid")}, k.convalidated
from pg_constraint as k join {_OURS_TABLES} as o on o.oid = k.conrelid
join pg_class as c on c.oid = k.confrelid join pg_namespace as n on n.oid = c.relnamespace
where k.contype = 'f' and k.conparentid = 0
order by k.conrelid, k.conname
"""
TRIGGERS = f"""
select t.tgrelid::bigint, t.tgname, n.nspname || '.' || p.proname, t.tgenabled, t.tgtype::int
from pg_trigger as t join {_OURS_TABLES} as o on o.oid = t.tgrelid
join pg_proc as p on p.oid = t.tgfoid join pg_namespace as n on n.oid = p.pronamespace
where not t.tgisinternal
order by t.tgrelid, t.tgname
"""
SEQUENCES = f"""
select n.nspname, c.relname, s.seqincrement, s.seqmin, s.seqmax, s.seqcycle, v.last_value,
  tn.nspname, t.relname, a.attname
from pg_sequence as s join pg_class as c on c.oid = s.seqrelid join pg_namespace as n on n.oid = c.relnamespace
join pg_sequences as v on v.schemaname = n.nspname and v.sequencename = c.relname
left join pg_depend as o on o.classid = 'pg_class'::regclass and o.objid = c.oid and o.deptype in ('a', 'i')
  and o.refclassid = 'pg_class'::regclass and o.refobjsubid > 0
left join pg_class as t on t.oid = o.refobjid left join pg_namespace as tn on tn.oid = t.relnamespace
left join pg_attribute as a on a.attrelid = o.refobjid and a.attnum = o.refobjsubid
where c.relpersistence <> 't' and {_OURS}
order by n.nspname, c.relname
"""
TYPES = f"""{_PLAIN}
select format_type(t.oid, null),
  array(select e.enumlabel::text from pg_enum as e where e.enumtypid = t.oid order by e.enumsortorder),
  case when t.typtype = 'd' then format_type(t.typbasetype, t.typtypmod) else '' end,
  array(select pg_get_constraintdef(k.oid) from pg_constraint as k where k.contypid = t.oid and k.contype = 'c'
        order by 1)
from pg_type as t join pg_namespace as n on n.oid = t.typnamespace
where t.typtype in ('e', 'd') and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'bg')
order by 1
"""
PUBLISHED = """
select v.schemaname, v.tablename, p.pubname, v.attnames::text[], v.rowfilter is not null,
  p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate, p.pubviaroot
from pg_publication as p join pg_publication_tables as v on v.pubname = p.pubname
where p.pubname like 'bg\\_%' and v.schemaname <> 'bg'
order by 1, 2, 3
"""

# --- Rows that decide -------------------------------------------------------------------------------------------------

# What the reverse slot holds, unread: each kind of change to each table once, with how often. A change is told by its
# first five bytes, its kind and its table; of the kinds R and T all is needed.
PEEK = """
select case when get_byte(data, 0) in (82, 84) then data else substring(data from 1 for 5) end as head, count(*)
from pg_logical_slot_peek_binary_changes(
  %s, null, null, 'proto_version', '1', 'publication_names', %s, 'origin', 'none') as changes (lsn, xid, data)
group by head
"""
ORPHAN = (
    "select exists (select from {child} as c where {present} and not exists (select from {parent} as p where {equal}))"
)
FILLED = "select exists (select from {})"

# --- The state of replication, and what it requires -------------------------------------------------------------------

# relid and leader_pid are set for workers that copy a table or help with a large transaction.
SUBSCRIPTIONS = """
select s.subname, coalesce(s.subslotname, ''), s.subenabled, exists (
    select from pg_stat_subscription as w
    where w.subid = s.oid and w.pid is not null and w.relid is null and w.leader_pid is null),
  array(select r.srrelid::regclass::text from pg_subscription_rel as r
        where r.srsubid = s.oid and r.srsubstate <> 'r' order by 1),
  coalesce((select to_jsonb(c) from pg_stat_subscription_stats as c where c.subid = s.oid), '{}')
from pg_subscription as s
where s.subdbid = (select oid from pg_database where datname = current_database()) and s.subname like 'bg\\_%'
order by s.subname
"""
SLOTS = """
select slot_name, wal_status, pg_size_pretty(safe_wal_size) from pg_replication_slots
where slot_type = 'logical' and database = current_database()
"""
# A transaction that writes delays a new slot, in whichever database it is; any other keeps the lock of this one.
LONG_TRANSACTIONS = """
select pid, extract(epoch from clock_timestamp() - xact_start)::float8 from pg_stat_activity
where backend_type = 'client backend' and pid <> pg_backend_pid()
  and (backend_xid is not null or datname = current_database())
  and xact_start < clock_timestamp() - %s * interval '1 second'
order by xact_start
"""
PREPARED_TRANSACTIONS = "select gid, extract(epoch from clock_timestamp() - prepared)::float8 from pg_prepared_xacts"
CLOCK = "select extract(epoch from clock_timestamp())::float8"
SETTINGS = """
select current_setting('server_version_num')::int, current_setting('wal_level'),
  current_setting('max_slot_wal_keep_size'),
  current_setting('max_replication_slots')::int - (select count(*) from pg_replication_slots),
  current_setting('max_wal_senders')::int - (select count(*) from pg_stat_replication),
  current_setting('max_logical_replication_workers')::int
    - (select count(*) from pg_stat_activity where backend_type like 'logical replication%worker'),
  current_setting('max_worker_processes')::int
    - (select count(*) from pg_stat_activity where backend_type not in (
        'client backend', 'walsender', 'autovacuum worker', 'autovacuum launcher', 'background writer', 'checkpointer',
        'walwriter', 'walsummarizer', 'archiver', 'startup', 'io worker', 'slotsync worker', 'walreceiver'))
"""
ROLE = """
select r.rolname, r.rolsuper, r.rolreplication, has_database_privilege(current_database(), 'CREATE'),
  r.rolsuper or pg_has_role(current_user, 'pg_create_subscription', 'USAGE')
from pg_roles as r where r.rolname = current_user
"""
NOT_OWNED = f"""
select t.nspname, t.relname, pg_get_userbyid(t.relowner) from {_OURS_TABLES} as t
where not pg_has_role(current_user, t.relowner, 'USAGE')
order by 1, 2
"""
AVAILABLE = "select name from pg_available_extensions"
