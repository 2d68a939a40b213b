"""Django's backend for PostgreSQL, for connections that are kept while servers come and go."""

import psycopg2
from django.db.backends.postgresql import base


class DatabaseWrapper(base.DatabaseWrapper):
    def is_usable(self) -> bool:
        """Whether the server answers and takes writes.

        Django asks before a kept connection's first use in a request (CONN_HEALTH_CHECKS), and at the end of a request
        in which the database raised an error. After a failover the old primary answers every SELECT and refuses every
        write: so each thread of each process leaves it at its next request, and connects anew to where the name points.
        It is what libpq asks for target_session_attrs=read-write; it covers default_transaction_read_only, too.
        https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-TARGET-SESSION-ATTRS
        """
        if self.connection is None:
            return False
        try:
            with self.connection.cursor() as cursor:
                cursor.execute("SHOW transaction_read_only")
                return bool(cursor.fetchone() == ("off",))
        except psycopg2.Error:
            return False
