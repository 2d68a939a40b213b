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
