"""The SQL of the database per colour, by name. Values go in as parameters, names as psycopg2.sql.Identifier.

What the guard runs is qualified, as it runs with the search_path of whoever writes.
"""

# The advisory lock that every writing transaction shares, and that a switch takes alone. It is per database:
# https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
LOCK = 7220001
ONE_PARTITION = "BG002"  # the SQLSTATE of a TRUNCATE of one partition
FENCED = "BG001"  # the SQLSTATE of a write that the fence refuses
LOCK_TIMEOUT = "55P03"  # the SQLSTATE of a lock that was not granted in time

# --- State: who writes, which attempt to switch is under way, and how far it has come ---------------------------------

# bg.note has the orchestrator's notes: the link, which tells the app for which release a colour was prepared, and the
# defaults that go at the end.
# The fence is a sequence because reading one ignores snapshots: a transaction that began before the switch
# still sees the current value.
SCHEMA = f"""
create schema if not exists bg;
create sequence if not exists bg.fence minvalue 0 start 0;
create table if not exists bg.state (
  one boolean primary key default true check (one),
  attempt bigint not null default 0,
  phase text not null default 'standby' check (phase in ('standby', 'active', 'fencing', 'committing', 'target')),
  deadline timestamptz,
  catalog jsonb
);
create table if not exists bg.heartbeat (colour text primary key, marker uuid not null, at timestamptz not null);
create table if not exists bg.note (
  kind text, name text, value text not null, at timestamptz not null default clock_timestamp(), primary key (kind, name)
);
create or replace function bg.enter() returns void language plpgsql as $$
begin
  perform pg_catalog.pg_advisory_xact_lock_shared({LOCK});
  if (select last_value from bg.fence) operator(pg_catalog.<>) 1
    and coalesce(pg_catalog.current_setting('bg.bypass', true), '') operator(pg_catalog.<>) 'on' then
    raise exception 'fenced: the database of the other colour takes the writes' using errcode = '{FENCED}';
  end if;
end
$$;
create or replace function bg.guard() returns trigger language plpgsql as $$
begin
  perform bg.enter();
  -- Partitions are published through their root, which sends its own TRUNCATE but not that of one partition.
  if tg_op operator(pg_catalog.=) 'TRUNCATE'
    and exists (select from pg_catalog.pg_class c where c.oid operator(pg_catalog.=) tg_relid and c.relispartition)
    and not exists (
      select from pg_catalog.pg_partition_ancestors(tg_relid) a (parent)
      join pg_catalog.pg_locks l on l.relation operator(pg_catalog.=) a.parent
      where a.parent operator(pg_catalog.<>) tg_relid and l.granted
        and l.mode operator(pg_catalog.=) 'AccessExclusiveLock'
        and l.pid operator(pg_catalog.=) pg_catalog.pg_backend_pid()) then
    raise exception 'TRUNCATE of the partition % would not reach the other database: use DELETE', tg_table_name
      using errcode = '{ONE_PARTITION}';
  end if;
  return null;
end
$$;
create or replace function bg.ddl() returns event_trigger language plpgsql as $$
begin
  perform bg.enter();
end
$$;
grant usage on schema bg to public;
grant select on sequence bg.fence to public;
grant select on bg.state, bg.heartbeat, bg.note to public;
"""
# A database that has its state keeps it.
START = """
with new as (insert into bg.state (phase) values (%s) on conflict do nothing returning phase)
select setval('bg.fence', case phase when 'active' then 1 else 0 end) from new
"""
READ_STATE = "select (select last_value from bg.fence) = 1, attempt, phase, deadline from bg.state"
DROP_SCHEMA = "drop schema if exists bg cascade"

# --- Fence: the guard on every table ----------------------------------------------------------------------------------

CREATE_GUARD = """
set local lock_timeout = {timeout};
create or replace trigger bg_guard before insert or update or delete or truncate on {table}
  for each statement execute function bg.guard()
"""
DROP_GUARD = "set local lock_timeout = {timeout}; drop trigger if exists bg_guard on {table}"
_USERS_TABLES = r"""
  c.relkind in ('r', 'p') and c.relpersistence <> 't'
  and n.nspname not in ('bg', 'pg_catalog', 'information_schema') and n.nspname not like 'pg\_%'
"""
# Tables and partitions, parents included: a statement fires the triggers of the table that it names. 62 is the bits
# before, insert, delete, update and truncate of https://www.postgresql.org/docs/current/catalog-pg-trigger.html. One
# that always fires would refuse the TRUNCATE that replication brings.
_GUARD = """
  select from pg_trigger t join pg_proc p on p.oid = t.tgfoid
  where t.tgrelid = c.oid and t.tgname = 'bg_guard' and p.proname = 'guard' and p.pronamespace = to_regnamespace('bg')
    and t.tgenabled = 'O' and t.tgtype = 62 and t.tgqual is null and t.tgattr = ''
"""
_TABLES = "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace where "
UNGUARDED = f"{_TABLES} {_USERS_TABLES} and not exists ({_GUARD}) order by 1, 2"
GUARDED = f"{_TABLES} {_USERS_TABLES} and exists ({_GUARD}) order by 1, 2"
EVENT_TRIGGER = """
drop event trigger if exists bg_ddl;
create event trigger bg_ddl on ddl_command_start execute function bg.ddl()
"""
HAS_EVENT_TRIGGER = "select exists (select from pg_event_trigger where evtname = 'bg_ddl' and evtenabled in ('O', 'A'))"

# --- Catalogs: a fingerprint of every table ---------------------------------------------------------------------------

# What decides whether rows of one schema fit another. Expressions are compared as stored, which saves deparsing them.
_CATALOG = f"""(
  select coalesce(jsonb_object_agg(name, print), '{{}}') from (
    select format('%s.%s', n.nspname, c.relname) as name, md5(concat_ws('|',
      c.oid, c.relkind, c.relpersistence, c.relreplident, c.relrowsecurity, c.relispartition, (
        select string_agg(concat_ws(' ', attnum, attname, atttypid, atttypmod, attcollation, attnotnull, attgenerated,
          attidentity, attisdropped, md5(adbin::text)), ',' order by attnum)
        from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
        where attrelid = c.oid and attnum > 0
      ), (
        select string_agg(concat_ws(' ', conname, contype, convalidated, conkey, confrelid, confkey, confdeltype,
          md5(conbin::text)), ',' order by oid)
        from pg_constraint where conrelid = c.oid
      ), (
        select string_agg(concat_ws(' ', i.relname, indkey, indisreplident, md5(indexprs::text), md5(indpred::text)),
          ',' order by i.relname)
        from pg_index join pg_class i on i.oid = indexrelid where indrelid = c.oid and indisunique and indisvalid
      ), (
        select string_agg(concat_ws(' ', tgname, tgfoid, tgenabled, tgtype), ',' order by tgname)
        from pg_trigger where tgrelid = c.oid and not tgisinternal
      ))) as print
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where {_USERS_TABLES}
  ) as tables
)"""
REMEMBER_CATALOG = f"update bg.state set catalog = {_CATALOG}"
CHANGED_TABLES = f"""
select coalesce(a.key, b.key)
from bg.state, jsonb_each_text(catalog) a full join jsonb_each_text({_CATALOG}) b using (key)
where catalog is not null and a.value is distinct from b.value order by 1
"""
# What changes with every DDL, and for little else; read while nobody can write, where a fingerprint takes too long.
CATALOG_VERSION = """
select concat_ws(' ',
  (select concat(count(*), '/', sum(xmin::text::bigint)) from pg_attribute where attrelid >= 16384 and attnum > 0),
  (select concat(count(*), '/', sum(xmin::text::bigint)) from pg_constraint),
  (select concat(count(*), '/', sum(xmin::text::bigint)) from pg_trigger))
"""

# --- Sequences --------------------------------------------------------------------------------------------------------

# NULL until the sequence is first called: https://www.postgresql.org/docs/current/view-pg-sequences.html
POSITIONS = r"""
select c.oid::bigint, n.nspname, c.relname, s.seqincrement, s.seqmin, s.seqmax, pg_sequence_last_value(c.oid)
from pg_sequence s join pg_class c on c.oid = s.seqrelid join pg_namespace n on n.oid = c.relnamespace
where c.relpersistence <> 't' and n.nspname not in ('bg', 'pg_catalog') and n.nspname not like 'pg\_%'
"""
LAST_VALUES = (
    "select oid, pg_sequence_last_value(oid::oid::regclass) as last, true as called from unnest({oids}::bigint[]) oid"
)
LAST_VALUE = "select {oid}::bigint as oid, last_value as last, is_called as called from {name}"
# Never back, should somebody have called it meanwhile. {furthest} is greatest, or least if it counts down.
SET_SEQUENCE = "setval({oid}::bigint::oid::regclass, {furthest}({value}, (select last_value from {name})))"

# --- Heartbeats: how far the other side has come ----------------------------------------------------------------------

BEAT = """
insert into bg.heartbeat (colour, marker, at) values ({colour}, {marker}, clock_timestamp())
on conflict (colour) do update set marker = excluded.marker, at = excluded.at
"""
SEEN = "select marker = %s::uuid from bg.heartbeat where colour = %s"

# --- The app: what its backend sends (backstagetest1/bluegreen) -------------------------------------------------------

ENTER = "select bg.enter()"  # with the first statement of a transaction
READ_FENCE = "select last_value from bg.fence"
# The colour that was prepared for a release, as long as the two are linked; otherwise null.
PREPARED = "select value::json ->> 'target' from bg.note where kind = 'link'"

# --- Switch: each a compare-and-set, of which one session alone gets a row --------------------------------------------

CLAIM_SOURCE = """
update bg.state set attempt = %s, phase = 'fencing', deadline = null
where attempt = %s and phase = 'active' and (select last_value from bg.fence) = 1 returning attempt
"""
# A target of an attempt that was given up may still be called so.
CLAIM_TARGET = """
update bg.state set attempt = %s, phase = 'target', deadline = null
where attempt = %s and phase in ('standby', 'target') and (select last_value from bg.fence) = 0 returning attempt
"""
SET_DEADLINE = """
update bg.state set deadline = clock_timestamp() + %s * interval '1 s' where attempt = %s and phase = 'target'
returning deadline
"""
# How long the oldest transaction that has written runs already, in seconds: it would make all others wait for the lock.
OLDEST_WRITER = f"""
select coalesce(max(extract(epoch from clock_timestamp() - xact_start))::float, 0)
from pg_locks join pg_stat_activity using (pid)
where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())
  and classid = 0 and objid = {LOCK} and objsubid = 1 and mode = 'ShareLock' and granted
"""
TAKE_LOCK = f"select pg_advisory_lock({LOCK})"
UNLOCK = f"select pg_advisory_unlock({LOCK})"
# One message is one transaction, and one wait for the disk. No writer is left when it begins, so that the marker comes
# after every write, and the sequences are read after the last.
FENCE = """
with claimed as (
  update bg.state set phase = 'committing', deadline = {deadline} where attempt = {attempt} and phase = 'fencing'
  returning 1
) select setval('bg.fence', 0) from claimed;
{beat};
select phase = 'committing' and attempt = {attempt} and (select last_value from bg.fence) = 0,
  ({version}),
  (select jsonb_agg(jsonb_build_array(oid, last, called)) from ({sequences}) as found)
from bg.state
"""
# The commit point. The fence comes last: setval takes effect at once, whatever becomes of the transaction.
COMMIT = """
with claimed as (
  update bg.state set phase = 'active', deadline = null
  where attempt = {attempt} and phase = 'target' and clock_timestamp() < deadline returning 1
) select {sequences} setval('bg.fence', 1) from claimed
"""
LEAVE = f"{UNLOCK}; update bg.state set phase = 'standby', deadline = null where attempt = %s and phase = 'committing'"
# The lock goes at once, before the transaction waits for the disk.
TRY_AGAIN = f"""
with held as (
  update bg.state set phase = 'fencing', deadline = null where attempt = %s and phase in ('fencing', 'committing')
  returning 1
) select setval('bg.fence', 1) from held;
{UNLOCK}
"""
GIVE_UP = """
with held as (
  update bg.state set attempt = attempt + 1, phase = 'active', deadline = null
  where attempt = %s and phase in ('fencing', 'committing') returning 1
) select setval('bg.fence', 1) from held
"""
RELEASE = "update bg.state set phase = 'standby', deadline = null where attempt = %s and phase = 'target'"

# --- Recovery ---------------------------------------------------------------------------------------------------------

# Also who waits for it, as it would be granted the lock next.
END_HOLDERS = f"""
select pg_terminate_backend(pid, 500) from pg_locks
where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())
  and classid = 0 and objid = {LOCK} and objsubid = 1 and mode = 'ExclusiveLock' and pid <> pg_backend_pid()
"""
BAR = "update bg.state set attempt = attempt + 1, phase = 'standby', deadline = null where phase <> 'active'"
TAKE_BACK = """
with held as (
  update bg.state set attempt = attempt + 1, phase = 'active', deadline = null where phase in ('fencing', 'committing')
  returning 1
) select setval('bg.fence', 1) from held
"""
TAKEN_OVER = "update bg.state set phase = 'active', deadline = null where phase <> 'active'"
HANDED_OVER = """
with held as (
  update bg.state set phase = 'standby', deadline = null where phase in ('fencing', 'committing') returning 1
) select setval('bg.fence', 0) from held
"""

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
UNPOPULATED = """
select n.nspname, c.relname from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
where c.relkind = 'm' and not c.relispopulated order by 1, 2
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

# Decoding reads what is on disk. Whoever migrates may not wait for that (synchronous_commit), but this commit does.
FLUSH = "select pg_logical_emit_message(true, 'bg', '')"
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
  coalesce(current_setting('max_active_replication_origins', true), current_setting('max_replication_slots'))::int
    - (select count(*) from pg_replication_origin),
  current_setting('max_wal_senders')::int - (select count(*) from pg_stat_replication),
  current_setting('max_logical_replication_workers')::int
    - (select count(*) from pg_stat_activity where backend_type like 'logical replication%worker'),
  current_setting('max_worker_processes')::int
    - (select count(*) from pg_stat_activity where backend_type not in (
        'client backend', 'walsender', 'autovacuum worker', 'autovacuum launcher', 'background writer', 'checkpointer',
        'walwriter', 'walsummarizer', 'archiver', 'startup', 'io worker', 'slotsync worker', 'walreceiver'))
"""
# Two databases with the same answer are in one server.
SERVER_ID = "select concat(pg_postmaster_start_time(), ' ', inet_server_port())"
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

# --- The target's schema ----------------------------------------------------------------------------------------------

# What has to go before the source's schema is restored: all but `bg`, extensions and the schema `public` itself. An
# object that an earlier DROP ... CASCADE has dropped is skipped.
DROPS = """
with extension as (select classid, objid from pg_depend where deptype = 'e'),
ours as (
  select oid, nspname from pg_namespace
  where nspname not in ('bg', 'pg_catalog', 'information_schema') and nspname not like 'pg\\_%'
    and not exists (select from extension e where e.classid = 'pg_namespace'::regclass and e.objid = pg_namespace.oid)
)
select format('drop schema if exists %I cascade', nspname) from ours where nspname <> 'public'
union all
select format('drop %s if exists %I.%I cascade',
    case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence'
      when 'f' then 'foreign table' else 'table' end, o.nspname, c.relname)
from pg_class c join ours o on o.oid = c.relnamespace
where o.nspname = 'public' and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
  and not exists (select from extension e where e.classid = 'pg_class'::regclass and e.objid = c.oid)
  and not (c.relkind = 'S' and exists (
    select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'i'))
union all
select format('drop routine if exists %s cascade', p.oid::regprocedure)
from pg_proc p join ours o on o.oid = p.pronamespace
where o.nspname = 'public' and p.prokind <> 'a'
  and not exists (select from extension e where e.classid = 'pg_proc'::regclass and e.objid = p.oid)
union all
select format('drop type if exists %I.%I cascade', o.nspname, t.typname)
from pg_type t join ours o on o.oid = t.typnamespace left join pg_class c on c.oid = t.typrelid
where o.nspname = 'public' and (t.typtype in ('e', 'd', 'r') or c.relkind = 'c')
  and not exists (select from extension e where e.classid = 'pg_type'::regclass and e.objid = t.oid)
"""
TABLES_THERE = """
select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and c.relpersistence <> 't'
  and n.nspname not in ('bg', 'pg_catalog', 'information_schema') and n.nspname not like 'pg\\_%'
  and not exists (
    select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
"""
EMPTY_HEARTBEATS = "delete from bg.heartbeat"  # the source's are copied
MIGRATIONS_TABLE = "select to_regclass('public.django_migrations') is not null"
MIGRATIONS = "select id, app, name, applied from public.django_migrations order by id"
COPY_MIGRATIONS = """
insert into public.django_migrations (id, app, name, applied)
select * from unnest(%s::bigint[], %s::text[], %s::text[], %s::timestamptz[])
"""

# --- Replication ------------------------------------------------------------------------------------------------------

HAS_NOTES = "select to_regclass('bg.note') is not null"
NOTE = """
insert into bg.note (kind, name, value) values (%s, %s, %s)
on conflict (kind, name) do update set value = excluded.value, at = excluded.at
"""
NOTES = "select name, value, at from bg.note where kind = %s"
FORGET = "delete from bg.note where kind = any (%s)"

INSTALLED = "select to_regclass('bg.state') is not null"
ALONE = "select pg_try_advisory_lock(7220002)"  # one command at a time prepares or finalizes
SERVER = """
select current_setting('server_version_num')::int, current_setting('wal_level'),
  current_setting('max_slot_wal_keep_size'), has_parameter_privilege('max_slot_wal_keep_size', 'alter system')
"""
LIMIT_WAL = "alter system set max_slot_wal_keep_size = {}"
RELOAD = "select pg_reload_conf()"

HAS_PUBLICATION = "select exists (select from pg_publication where pubname = 'bg_pub')"
# Through the root, so that a partition that only the sender has stops the link, rather than its rows being left out.
CREATE_PUBLICATION = "create publication bg_pub for table {} with (publish_via_partition_root = true)"
ALTER_PUBLICATION = "alter publication bg_pub set table {}"
DROP_PUBLICATION = "drop publication bg_pub"

CREATE_SLOT = "select pg_create_logical_replication_slot(%s, 'pgoutput')"
# Whose transactions have an id: everybody may read pg_locks.
WRITERS = """
select l.pid, coalesce(a.usename, '?'), coalesce(a.datname, '?'),
  coalesce(extract(epoch from clock_timestamp() - a.xact_start), 0)::float
from pg_locks l left join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted
  and l.pid is distinct from pg_backend_pid()
order by 4 desc limit 3
"""
LINK_SLOTS = r"""
select slot_name, active_pid from pg_replication_slots
where database = current_database() and slot_name ~ '^bg_[0-9a-f]{8}_[fr]$'
"""
DROP_SLOT = "select pg_drop_replication_slot(%s)"
TERMINATE = "select pg_terminate_backend(%s)"
# Applied by a worker of its own, with the table owner's rights, and written to disk before it is confirmed.
CREATE_SUBSCRIPTION = """
create subscription {name} connection {url} publication bg_pub
with (create_slot = false, slot_name = {slot}, copy_data = {copy}, origin = none, streaming = off)
"""
LINK_SUBSCRIPTIONS = r"""
select subname from pg_subscription
where subdbid = (select oid from pg_database where datname = current_database()) and subname ~ '^bg_[0-9a-f]{8}_[fr]$'
order by 1
"""
ENABLE_SUBSCRIPTION = "alter subscription {} enable"
DISABLE_SUBSCRIPTION = "alter subscription {} disable"
FORGET_SLOT = "alter subscription {} set (slot_name = none)"
DROP_SUBSCRIPTION = "drop subscription {}"

# How large the published tables are, partitions included, by the server's estimate.
SIZES = """
select n.nspname::text, c.relname::text,
  coalesce((select sum(pg_table_size(relid)) from pg_partition_tree(c.oid)), pg_table_size(c.oid))::bigint
from pg_publication p join pg_publication_rel r on r.prpubid = p.oid join pg_class c on c.oid = r.prrelid
join pg_namespace n on n.oid = c.relnamespace
where p.pubname = 'bg_pub'
"""
# Each table of a subscription: whether it is copied, and what of it is so far. For statistics:
# https://www.postgresql.org/docs/current/progress-reporting.html#COPY-PROGRESS-REPORTING
COPYING = """
select n.nspname::text, c.relname::text, r.srsubstate in ('f', 's', 'r'), r.srsubstate = 'r',
  coalesce(y.bytes_processed, 0), coalesce(y.tuples_processed, pg_stat_get_live_tuples(c.oid), 0)
from pg_subscription s join pg_subscription_rel r on r.srsubid = s.oid
join pg_class c on c.oid = r.srrelid join pg_namespace n on n.oid = c.relnamespace
left join pg_stat_progress_copy y on y.relid = c.oid and y.datname = current_database() and y.type = 'CALLBACK'
where s.subname = %s
"""
# Since PostgreSQL 15.
ERRORS = """
select coalesce(sum(t.apply_error_count), 0)::int, coalesce(sum(t.sync_error_count), 0)::int
from pg_stat_subscription_stats t where t.subname = %s
"""
# Of a slot: the WAL that its reader has yet to confirm, what may still be written before it is lost, and since when
# nobody reads it (PostgreSQL 17).
SLOT = """
select pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint, active, wal_status, safe_wal_size,
  (to_jsonb(s) ->> 'inactive_since')::timestamptz, clock_timestamp(), confirmed_flush_lsn::text
from pg_replication_slots s where slot_name = %s and database = current_database()
"""
WORKER = """
select subenabled, exists (select from pg_stat_subscription t where t.subid = s.oid and t.pid is not null)
from pg_subscription s where subname = %s and subdbid = (select oid from pg_database where datname = current_database())
"""

# Before a statement that locks a table: whoever waits for it longer makes everybody behind it wait.
BRIEFLY = "set local lock_timeout = '300ms';\n"
BEATS = "select colour, at from bg.heartbeat"
# The publication's tables, with the columns of those that have a list of them.
LISTS = """
select n.nspname::text, c.relname::text,
  (select array_agg(a.attname::text order by a.attnum) from pg_attribute a
   where a.attrelid = c.oid and a.attnum = any (r.prattrs))
from pg_publication p join pg_publication_rel r on r.prpubid = p.oid join pg_class c on c.oid = r.prrelid
join pg_namespace n on n.oid = c.relnamespace
where p.pubname = 'bg_pub' and n.nspname <> 'bg'
order by 1, 2
"""

ADD_ABSORBERS = "alter table {} {}"
ADD_ABSORBER = "add column {} text"
DROP_ABSORBER = "drop column {}"
CREATE_ABSORBER = "create table {} ({})"
DROP_TABLE = "drop table {}"
VALUES = "select distinct {}::text from {} limit 2"
SET_DEFAULT = "alter table {} alter column {} set default {}::{}"
DROP_DEFAULT = "alter table {} alter column {} drop default"
REFRESH = "refresh materialized view {}"
ANALYZE = "analyze {}"
