"""What a migration wrote, from the messages of PostgreSQL's logical decoding.

https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html, version 1 of the protocol.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from deploy.databases.errors import DatabaseError


@dataclass(frozen=True)
class Written:
    """How often rows of a table were inserted, updated and deleted, and the table was truncated."""

    schema: str
    table: str
    inserts: int = 0
    updates: int = 0
    deletes: int = 0
    truncates: int = 0


KINDS = {b"I": "inserts", b"U": "updates", b"D": "deletes"}


def written(messages: Iterable[tuple[bytes, int]]) -> tuple[Written, ...]:
    """What the messages say, by table and sorted; each comes with how often it occurred (statements.PEEK).

    Of a change only the first five bytes are read, and nothing is kept but a count for each table, so it does not
    matter how much was written. Raises DatabaseError if a message is not one of the protocol's.
    """
    names: dict[int, tuple[str, str]] = {}
    counts: dict[int, dict[str, int]] = {}
    for message, times in messages:
        try:
            kind = message[:1]
            if kind == b"R":
                (oid,) = struct.unpack_from("!I", message, 1)
                schema, table, _ = message[5:].split(b"\0", 2)
                names[oid] = schema.decode() or "pg_catalog", table.decode()
            elif kind == b"T":
                (count,) = struct.unpack_from("!I", message, 1)
                for oid in struct.unpack_from(f"!{count}I", message, 6):
                    add(counts, oid, "truncates", times)
            elif kind in KINDS:
                (oid,) = struct.unpack_from("!I", message, 1)
                add(counts, oid, KINDS[kind], times)
            elif kind not in (b"B", b"C", b"O", b"Y", b"M"):
                raise ValueError(kind)
        except (ValueError, struct.error):
            raise DatabaseError(f"Cannot read what the slot holds: unknown message {message[:16]!r}") from None
    found = (
        Written(*names.get(oid, ("", f"oid {oid}")), *(each.get(kind, 0) for kind in (*KINDS.values(), "truncates")))
        for oid, each in counts.items()
    )
    return tuple(sorted(found, key=lambda each: (each.schema, each.table)))


def add(counts: dict[int, dict[str, int]], oid: int, kind: str, times: int) -> None:
    """Adds to the count of what was done to a table."""
    counts.setdefault(oid, {}).setdefault(kind, 0)
    counts[oid][kind] += times
