"""Who did what: the append-only audit log, its page and `manage.py audit`. docs/approvals.md documents it."""

from audit.recording import record, record_or_log

__all__ = ["record", "record_or_log"]
