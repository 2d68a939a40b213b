"""manage.py bluegreen: a database per colour: prepare the idle one, move the writes to it and back, end it."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from django.conf import settings
from django.core.management.base import CommandParser
from django.db.migrations.loader import MigrationLoader

from deploy.console import Output
from deploy.databases import catalogs, fence, links, preflight, replication, statements
from deploy.databases import recover as recovery
from deploy.databases import switch as switching
from deploy.databases.catalogs import Notes
from deploy.databases.copying import retried, size
from deploy.databases.errors import DatabaseError
from deploy.databases.findings import Finding
from deploy.databases.links import Told
from deploy.databases.pgoutput import Written
from deploy.databases.preparation import Options
from deploy.databases.rehearsal import Rehearsal
from deploy.databases.side import Side
from deploy.databases.status import Direction, Status, note_lossless, status
from deploy.errors import DeployRefused, ExitCode, InvalidUsage, StepFailed
from deploy.management import colours
from deploy.management.base import seconds
from deploy.shell import begin, last_line
from health.management.base import DocumentedCommand
from ledger.environments import config_of

# The options that each action takes, besides --json.
TAKES = {
    "prepare": ("release", "from_colour", "again", "loosen", "seeded", "empty_target", "patience", "dry_run"),
    "status": (),
    "switch": ("wait", "dry_run"),
    "rollback": ("wait", "lossy", "dry_run"),
    "finalize": ("yes", "after", "dry_run"),
    "recover": ("force_back",),
}
WAIT = 30.0  # seconds that a switch tries for
PATIENCE = 300.0  # seconds in which a step of prepare has to get on
# The switch waits for these by itself.
AWAITED = ("long-transaction",)
# The variables that must not reach the migration: the idle database alone is its own.
DATABASE_VARIABLES = ("DATABASE_URL", "DATABASE_URL_BLUE", "DATABASE_URL_GREEN")


class Command(DocumentedCommand):
    help = """\
Ship a release with a PostgreSQL database of its own, and go back without
losing a row. DATABASE_URL_BLUE and DATABASE_URL_GREEN name the two databases.

  prepare   copy the database that serves to the other colour's, migrate that
            with this release's migrations, and keep both in step both ways
  status    show which colour takes the writes, lag, slots, and whether a
            rollback is lossless
  switch    move the writes to the prepared database
  rollback  move the writes back; refused if that would lose rows
  finalize  end replication; after this, a rollback would lose rows
  recover   complete or undo an interrupted switch; as often as you like
"""
    examples = """\
examples:
  manage.py bluegreen prepare --dry-run          show the SQL; change nothing
  manage.py bluegreen prepare                    the app keeps serving
  manage.py bluegreen status --json | jq .lossless
  manage.py bluegreen switch                     writes are held for some 50 ms
  manage.py bluegreen rollback
  manage.py bluegreen prepare --loosen           let the idle database take what stopped it
  manage.py bluegreen recover                    after a switch was killed
  manage.py bluegreen finalize --yes

docs/blue-green.md explains what is promised, and how to recover by hand.

"""
    exit_codes = """\
exit codes:
  0  done, or nothing to do
  2  usage error
  3  another command is at work
  4  refused or interrupted; nothing was changed
  5  failed or interrupted; the colour that took the writes still takes them
  6  needs an operator: it is unknown which colour takes the writes, or the
     writes moved and something is left to do
"""
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        """The arguments of the command."""
        parser.add_argument("action", choices=TAKES, help="what to do")
        parser.add_argument("--json", action="store_true", help="print one JSON object per line")
        parser.add_argument("--dry-run", action="store_true", help="print the SQL for each side; change nothing")
        group = parser.add_argument_group("prepare")
        group.add_argument(
            "--release", metavar="NAME", help="the release's name in status (default APP_VERSION: %(default)s)"
        )
        group.add_argument(
            "--from", dest="from_colour", choices=("blue", "green"), help="the colour that serves, if that is unknown"
        )
        group.add_argument("--again", action="store_true", help="prepare anew even if it is prepared for this release")
        group.add_argument(
            "--loosen", action="store_true", help="cure on the idle side what is refused, or what stops its replication"
        )
        group.add_argument(
            "--seeded",
            action="append",
            metavar="TABLE",
            help="allow rows that the migration inserts here, as they depend on no others; repeatable",
        )
        group.add_argument("--empty-target", action="store_true", help="drop the tables of a database never prepared")
        group.add_argument(
            "--patience",
            type=seconds,
            metavar="SECONDS",
            help=f"time in which each step has to get on (default {PATIENCE:g})",
        )
        group = parser.add_argument_group("switch and rollback")
        group.add_argument(
            "--wait",
            type=seconds,
            metavar="SECONDS",
            help=f"time to wait for a moment that allows it (default {WAIT:g})",
        )
        group.add_argument("--lossy", action="store_true", help="roll back even if rows are lost; the run says which")
        group = parser.add_argument_group("finalize and recover")
        group.add_argument("--yes", action="store_true", help="skip the confirmation for production")
        group.add_argument(
            "--after",
            type=float,
            metavar="HOURS",
            help="finalize: only if the two have been linked for longer; for cron",
        )
        group.add_argument(
            "--force-back",
            action="store_true",
            help="recover: return the writes although the other database does not answer and may have taken over",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Carries the action out. Exits with an ExitCode; whatever ends it is one line on standard error."""
        self.options, self.action = options, options["action"]
        self.output = Output(
            self.stdout, as_json=options["json"], no_color=options["no_color"], force_color=options["force_color"]
        )
        self.begun = False  # whether anything was changed
        self.destination = ""  # the colour that a switch moves the writes to
        self.sides: dict[str, Side] = {}
        with interruptible():
            try:
                code = self.operate()
            except KeyboardInterrupt:
                code = self.interrupted()
            except (DeployRefused, StepFailed) as error:
                code = self.failed(error)
            finally:
                for side in self.sides.values():
                    side.close()
        if code:
            sys.exit(code)

    def operate(self) -> int:
        """Carries the action out. Raises DeployRefused and StepFailed."""
        for name in {name for taken in TAKES.values() for name in taken} - {*TAKES[self.action]}:
            if self.options[name] not in (None, False):
                word = "from" if name == "from_colour" else name.replace("_", "-")
                raise InvalidUsage(f"Unexpected argument: bluegreen {self.action} takes no --{word}.")
        urls: dict[str, str] = settings.DATABASE_URLS
        if not urls:
            raise DeployRefused(
                "DATABASE_URL_BLUE and DATABASE_URL_GREEN are not set; a database per colour needs both. "
                "See docs/blue-green.md."
            )
        self.sides = {colour: Side(colour, url) for colour, url in urls.items()}
        actions: dict[str, Callable[[], int]] = {
            "prepare": self.prepare,
            "status": self.status,
            "switch": self.switch,
            "rollback": self.rollback,
            "finalize": self.finalize,
            "recover": self.recover,
        }
        return actions[self.action]()

    # Prepare

    def prepare(self) -> int:
        """Prepares the idle database."""
        source, target = self.roles()
        found = self.look()
        release = self.options["release"] or settings.VERSION
        link, again = found.link, self.options["again"] or bool(found.faults)
        ready = bool(link and link.ready and link.target == target.colour and link.release == release)
        current = link and link.ready and (link.release == release or link.source == target.colour)
        if self.options["loosen"] and current and not self.options["again"]:
            return self.loosen(found, source, target)
        if ready and not again:
            return self.result("unchanged", f"{target.colour} is already prepared for {release}; nothing to do.")
        self.judge(preflight.before(source, target), source, target)
        if self.options["dry_run"]:
            return self.rehearse(source, target, release)
        with Steps(self.output, self.touch) as steps:
            replication.prepare(
                source,
                target,
                migrate=lambda: self.migrate(target),
                say=steps.say,
                release=release,
                after=lambda notes, written: self.judge_release(source, target, notes, written),
                options=self.preparing(),
            )
        return self.result(
            "prepared",
            f"{target.colour} is prepared for {release} and in step. Move the writes with: manage.py bluegreen switch",
            writable=source.colour,
            target=target.colour,
            copied=steps.notes.get("copy"),
        )

    def roles(self) -> tuple[Side, Side]:
        """The side that serves and the other one. Raises DeployRefused if that cannot be told."""
        found = self.look()
        self.all_answer(found)
        given = self.options["from_colour"]
        if found.writable:
            if given not in (None, found.writable):
                raise DeployRefused(f"{found.writable} takes the writes, so --from {given} is wrong; leave it out.")
            return self.pair(found.writable)
        bare = [
            colour
            for colour, side in self.sides.items()
            if colour not in found.phases and side.value(statements.TABLES_THERE)
        ]
        if len(found.phases) == len(self.sides):
            raise DeployRefused("No colour takes the writes. Run manage.py bluegreen recover.")
        if given and given not in found.phases:
            return self.pair(given)
        if len(bare) != 1:
            what = "Both databases have" if bare else "Neither database has"
            raise DeployRefused(f"{what} tables, so which one serves is unknown; say so with --from COLOUR.")
        return self.pair(bare[0])

    def preparing(self) -> Options:
        """What the options say of a preparation."""
        given = self.options["patience"]
        return Options(
            pg_dump=settings.PG_DUMP,
            empty=self.options["empty_target"],
            again=True,  # whether there is something to do was decided by the state of the links
            patience=PATIENCE if given is None else given,
        )

    def rehearse(self, source: Side, target: Side, release: str) -> int:
        """Shows the SQL that prepare would run on each side."""
        applied = {(app, name) for app, name, *_ in self.applied(source)}
        loader = MigrationLoader(None)
        plan = [key for key in loader.graph.nodes if key not in applied]

        def migrations() -> None:
            self.show_sql(f"-- on {target.colour}\n-- manage.py migrate_release --unsafe")
            for app, name in plan:
                self.show_sql(f"--   {app}.{name} (see manage.py sqlmigrate {app} {name})")

        with self.rehearsals(source, target) as sides:
            replication.prepare(
                *sides,
                migrate=migrations,
                say=lambda text: self.show_sql(f"-- {text}") if text.endswith(" ...") else None,
                release=release,
                options=self.preparing(),
            )
        return self.result("planned", "Nothing was changed.")

    def applied(self, source: Side) -> Sequence[tuple[Any, ...]]:
        """The migrations that the source has."""
        return source.run(statements.MIGRATIONS) if source.value(statements.MIGRATIONS_TABLE) else []

    def show_sql(self, text: str) -> None:
        """Shows SQL, without passwords, as a person could run it."""
        self.output.event("sql", text=text)
        self.output.line(text)

    def migrate(self, target: Side) -> None:
        """Runs this release's migrations on the target, in a process that knows no other database. Raises StepFailed.

        A migration may use Django's default connection by mistake; there it must not reach the database that serves.
        """
        variables = {f"{name}{end}": "" for name in DATABASE_VARIABLES for end in ("", "_FILE")}
        environment = os.environ | variables | {"DATABASE_URL": bypassing(target.url)}
        words = [sys.executable, str(settings.BASE_DIR / "manage.py"), "migrate_release", "--unsafe"]
        lines: list[str] = []
        with begin(words, env=environment) as child:
            assert child.stdout
            try:
                for line in child.stdout:
                    lines.append(line)
                    self.output.tell(line.strip())
            except BaseException:
                child.terminate()
                raise
        if child.returncode:
            raise StepFailed(f"The migrations failed on {target.colour}: {last_line(''.join(lines))}", "".join(lines))

    def judge(self, found: Sequence[Finding], source: Side, target: Side) -> None:
        """Shows what was found. Raises DeployRefused if any of it is refused."""
        colours.show_findings(self.output, found, {"source": source, "target": target})
        if bad := colours.refused(found):
            many = "1 finding is" if len(bad) == 1 else f"{len(bad)} findings are"
            then = f"{source.colour} serves as before" if self.begun else "nothing was changed"
            raise DeployRefused(f"{many} refused, see the cures above; {then}.")

    def judge_release(
        self, source: Side, target: Side, notes: Notes, written: tuple[Written, ...]
    ) -> Sequence[Finding]:
        """Judges the migrated target. With --loosen it first does what is offered for it. Raises DeployRefused."""

        def compared() -> list[Finding]:
            return preflight.compare(source, target, notes=notes, written=written, seeded=self.options["seeded"] or ())

        found = compared()
        cures = [each for each in found if each.refused and each.cure_side == "target"]
        if self.options["loosen"] and cures:
            for each in cures:
                for statement in each.cure_sql:
                    retried(target, statement, timeout=3600)
                self.output.note(f"Loosened {name_of(each)} on {target.colour}.")
            found = compared()
        self.judge(found, source, target)
        return ()

    def loosen(self, found: Status, source: Side, target: Side) -> int:
        """Lets the idle side, `target`, take rows that it does not take yet."""
        link = found.link
        assert link
        old, new = self.sides[link.source], self.sides[link.target]
        role = "source" if target is old else "target"
        cures = [each for each in preflight.compare(old, new) if each.cure_side == role]
        if not cures:
            return self.result("unchanged", f"Nothing is offered to loosen {target.colour}; see bluegreen status.")
        colours.show_findings(self.output, cures, {"source": old, "target": new})
        done = [statement for each in cures for statement in each.cure_sql]
        if self.options["dry_run"]:
            with self.rehearsals(source, target) as (_, rehearsed):
                replication.loosen(rehearsed, done)
            return self.result("planned", "Nothing was changed.")
        self.begun = True
        with replication.alone(source):
            replication.loosen(target, done)
        names = ", ".join(sorted({name_of(each) for each in cures}))
        return self.result("loosened", f"Loosened on {target.colour}: {names}. Replication goes on within a second.")

    # Status

    def status(self) -> int:
        """Shows how the two databases are."""
        found, now = status(*self.sides.values()), datetime.now(UTC)
        code = ExitCode.DONE
        if not found.writable and (found.phases or found.unreachable):
            code = ExitCode.NEEDS_OPERATOR
        if any("Both databases accept writes" in fault for fault in found.faults):
            code = ExitCode.NEEDS_OPERATOR
        self.output.event("status", **colours.status_dict(found, now), exit_code=code)
        for text, style in colours.status_lines(found, now):
            self.output.line(text, style)
        return code

    # Switch and rollback

    def switch(self) -> int:
        """Moves the writes to the database that was prepared."""
        found = self.linked()
        assert found.link
        return self.move(found, self.sides[found.link.source], self.sides[found.link.target])

    def rollback(self) -> int:
        """Moves the writes back to the database that served before. Raises DeployRefused if rows would be lost."""
        found = self.linked()
        link = found.link
        assert link
        source, target = self.sides[link.target], self.sides[link.source]
        if found.writable == source.colour and not found.lossless:
            back = next(each for each in found.directions if each.sender == source.colour)
            lost = missing(back, found)
            if not self.options["lossy"]:
                raise DeployRefused(
                    f"A rollback would lose rows: {lost}. {back.fault or 'Wait until it has caught up.'} "
                    "--lossy rolls back all the same; nothing was changed."
                )
            return self.abandon(source, target, lost)
        return self.move(found, source, target)

    def linked(self) -> Status:
        """The state of two databases that are prepared. Raises DeployRefused."""
        found = self.look()
        self.all_answer(found)
        if not found.link or not found.link.ready:
            raise DeployRefused("Nothing is prepared. Run manage.py bluegreen prepare.")
        return found

    def move(self, found: Status, source: Side, target: Side) -> int:
        """Moves the writes from source to target. Raises DeployRefused and DatabaseError."""
        if found.writable == target.colour and found.phases.get(target.colour) == "active":
            return self.result("unchanged", f"{target.colour} takes the writes already; nothing to do.")
        bad = [each for each in preflight.state(source, target)[0] if each.code not in AWAITED]
        here, there = catalogs.read(source), catalogs.read(target)
        self.judge([*bad, *preflight.orphans(target, here, there)], source, target)
        if self.options["dry_run"]:
            with self.rehearsals(source, target) as sides:
                switching.plan(*sides)
            return self.result("planned", "Nothing was changed.")
        with replication.alone(source):
            return self.moved(source, target, self.carry(source, target))

    def carry(self, source: Side, target: Side, *, lossy: bool = False) -> switching.Switched:
        """One switch, shown as a step. Raises what switch() raises."""
        self.output.begin(self.action)
        self.destination = target.colour

        def on_step(name: str) -> None:
            self.begun = self.begun or name.startswith("claimed")
            self.output.event("progress", name=self.action, text=name)

        wait = WAIT if self.options["wait"] is None else self.options["wait"]
        done = switching.switch(source, target, say=self.output.tell, deadline=wait, lossy=lossy, on_step=on_step)
        tries = f", at attempt {done.tries}" if done.tries > 1 else ""
        self.output.end("succeeded", f"writes were held for {done.held * 1000:.0f} ms{tries}")
        return done

    def moved(self, source: Side, target: Side, done: switching.Switched) -> int:
        """Says how a switch has ended."""
        if done.lossless:
            note_lossless(target)
            text = f"{target.colour} takes the writes. A rollback to {source.colour} would lose nothing."
        else:
            text = (
                f"{target.colour} takes the writes. Its own have not arrived at {source.colour} yet, so a rollback may "
                "lose rows. See manage.py bluegreen status."
            )
        return self.result(
            "switched" if self.action == "switch" else "rolled back",
            text,
            ExitCode.DONE if done.lossless else ExitCode.NEEDS_OPERATOR,
            writable=target.colour,
            held_seconds=round(done.held, 4),
            tries=done.tries,
            lossless=done.lossless,
        )

    def abandon(self, source: Side, target: Side, lost: str) -> int:
        """Rolls back without what has not arrived. The rows stay in the source until it is prepared again."""
        if self.options["dry_run"]:
            return self.result("planned", f"Would roll back to {target.colour} and lose {lost}. Nothing was changed.")
        with replication.alone(source):
            self.output.note(f"Rolling back without {lost}.", "yellow")
            # What arrived later would overwrite what has been written meanwhile.
            for (name,) in target.run(statements.LINK_SUBSCRIPTIONS):
                links.enable(target, name, False)
            try:
                done = self.carry(source, target, lossy=True)
            except BaseException:
                for (name,) in target.run(statements.LINK_SUBSCRIPTIONS):
                    links.enable(target, name, True)
                raise
            links.clear(target, source)
        return self.result(
            "rolled back",
            f"{target.colour} takes the writes, without {lost}. They stay in the {source.colour} database until it is "
            "prepared again.",
            writable=target.colour,
            held_seconds=round(done.held, 4),
            tries=done.tries,
            lossless=False,
        )

    # Finalize and recover

    def finalize(self) -> int:
        """Ends replication between the two."""
        found = self.look()
        if not found.writable:
            self.all_answer(found)
            raise DeployRefused("It is unknown which colour takes the writes. Run manage.py bluegreen recover.")
        active, idle = self.pair(found.writable)
        if self.options["after"] is not None and (due := finalize_at(found, self.options["after"])):
            when = f"It will be due at {colours.moment(due)}." if found.linked_at else "Nothing is linked."
            return self.result("unchanged", f"{when} Nothing was changed.")
        self.confirm(active, idle)
        if self.options["dry_run"]:
            with self.rehearsals(active, idle) as sides:
                replication.finalize(*sides, say=lambda text: None)
            return self.result("planned", "Nothing was changed.")
        self.begun = True
        self.output.begin("finalize")
        told: list[str] = []
        replication.finalize(active, idle, say=told.append)
        self.output.end("succeeded", "; ".join(told))
        return self.result(
            "finalized",
            f"{active.colour} takes the writes alone. Prepare the next release with: manage.py bluegreen prepare",
            writable=active.colour,
        )

    def confirm(self, active: Side, idle: Side) -> None:
        """Asks before production can no longer roll back. Raises DeployRefused."""
        if not config_of(settings.ENVIRONMENT).production or self.options["yes"] or self.options["dry_run"]:
            return
        if not sys.stdin.isatty():
            raise InvalidUsage("finalize makes a rollback lose rows, so in production it requires --yes or a terminal.")
        self.stderr.write(f"About to end replication from {active.colour} to {idle.colour}: no rollback after it.", str)
        if input(f"Type {settings.ENVIRONMENT} to confirm: ").strip() != settings.ENVIRONMENT:
            raise DeployRefused("Not confirmed; nothing was changed.")

    def recover(self) -> int:
        """Completes or undoes what an interrupted switch has left."""
        try:
            found = recovery.recover(*self.sides.values(), force_back=self.options["force_back"])
        except DatabaseError as error:
            self.show_error(str(error), ExitCode.NEEDS_OPERATOR)
            return ExitCode.NEEDS_OPERATOR
        texts = {
            "forward": "The interrupted switch was completed",
            "back": "The interrupted switch was undone",
            "none": "No switch was interrupted",
        }
        if found.direction == "forward" and status(*self.sides.values()).lossless:
            note_lossless(self.sides[found.writable])
        silent = f" {found.unreachable} does not answer." if found.unreachable else ""
        return self.result(
            "recovered",
            f"{texts[found.direction]}: {found.writable} takes the writes.{silent}",
            writable=found.writable,
            direction=found.direction,
            unreachable=found.unreachable,
        )

    # What they have in common

    def pair(self, colour: str) -> tuple[Side, Side]:
        """That colour's side, and the other one."""
        (other,) = self.sides.keys() - {colour}
        return self.sides[colour], self.sides[other]

    @contextmanager
    def rehearsals(self, *sides: Side) -> Iterator[tuple[Rehearsal, ...]]:
        """The same sides, which show the SQL and change nothing."""
        found = tuple(Rehearsal(side, self.show_sql) for side in sides)
        try:
            yield found
        finally:
            for each in found:
                each.close()

    def look(self) -> Status:
        """The state of both, as it is now."""
        return status(*self.sides.values())

    def all_answer(self, found: Status) -> None:
        """Raises DeployRefused unless both databases answer."""
        if found.unreachable:
            raise DeployRefused(f"{found.faults[0]} Nothing was changed.")

    def touch(self, name: str) -> None:
        """Notes that the step begins, after which something is changed."""
        self.begun = self.begun or name != "check"

    def result(self, result: str, text: str, code: int = ExitCode.DONE, **more: Any) -> int:
        """Says how it ended. Returns `code`."""
        self.output.event("result", result=result, text=text, **more, exit_code=code)
        self.output.line(text)
        return code

    def failed(self, error: DeployRefused | StepFailed) -> int:
        """Says why it failed. Returns the exit code."""
        code = error.exit_code
        if isinstance(error, switching.InDoubt):
            code = ExitCode.NEEDS_OPERATOR
        elif self.begun and code == ExitCode.REFUSED:
            code = ExitCode.ROLLED_BACK
        if isinstance(error, StepFailed):
            self.output.quiet()
            self.output.details(error.details)
        return self.show_error(str(error), code)

    def show_error(self, text: str, code: int) -> int:
        """Shows an error in one line. Returns the exit code."""
        self.output.quiet()
        text = " ".join(text.split())
        self.output.event(
            "result", result="refused" if code < ExitCode.ROLLED_BACK else "failed", why=text, exit_code=code
        )
        if not self.output.as_json:
            self.stderr.write(text)
        return code

    def interrupted(self) -> int:
        """Says what an interrupted run has left, and what to run. Returns the exit code."""
        if not self.begun:
            return self.show_error("Interrupted; nothing was changed.", ExitCode.REFUSED)
        writable: list[str] = []
        try:
            writable = [colour for colour, side in self.sides.items() if fence.read(side).writable]
        except DatabaseError:
            pass
        if len(writable) != 1:
            return self.show_error(
                "Interrupted; which colour takes the writes is unknown. Run manage.py bluegreen recover.",
                ExitCode.NEEDS_OPERATOR,
            )
        if self.action in ("switch", "rollback") and writable[0] == self.destination:
            return self.show_error(
                f"Interrupted after {writable[0]} had taken over the writes. See manage.py bluegreen status.",
                ExitCode.NEEDS_OPERATOR,
            )
        return self.show_error(
            f"Interrupted; {writable[0]} takes the writes as before. Run the same command to begin anew.",
            ExitCode.ROLLED_BACK,
        )


class Steps:
    """Shows what a preparation says as steps: "copy ..." begins one, "copy: 3 of 5 tables" is about it."""

    def __init__(self, output: Output, on_step: Callable[[str], None]) -> None:
        self.output, self.on_step = output, on_step
        self.name = ""
        self.notes: dict[str, str] = {}  # what was last said of each step

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end("failed" if kind else "succeeded")

    def say(self, text: str) -> None:
        """Shows what was said."""
        if text.endswith(" ..."):
            self.end("succeeded")
            self.name = text.removesuffix(" ...")
            self.on_step(self.name)
            self.output.begin(self.name)
        elif self.name and text.startswith(f"{self.name}: "):
            said = Told(text.removeprefix(f"{self.name}: "), getattr(text, "figures", {}))
            self.notes[self.name] = said
            self.output.tell(said, **said.figures)
        else:
            self.end("failed")
            self.output.note(text)

    def end(self, outcome: str) -> None:
        """Ends the current step, if there is one."""
        if self.name:
            said = self.notes.get(self.name, "")
            shown = outcome == "succeeded" and said != "done"
            self.output.end(outcome, said if shown else "", **getattr(said, "figures", {}))
        self.name = ""


@contextmanager
def interruptible() -> Iterator[None]:
    """Has SIGTERM, as pipelines send it, act like Ctrl-C. A second one of either waits until the first is handled."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def finalize_at(found: Status, hours: float) -> datetime | None:
    """When the links are to be ended, if that is in the future or nothing is linked; otherwise None."""
    now = datetime.now(UTC)
    due = found.linked_at + timedelta(hours=hours) if found.linked_at else datetime.max.replace(tzinfo=UTC)
    return due if due > now else None


def bypassing(url: str) -> str:
    """The URL with the option that lets a session write in spite of the fence."""
    parts = urlsplit(url)
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    given["options"] = f"{given.get('options', '')} -c bg.bypass=on".strip()
    return urlunsplit(parts._replace(query=urlencode(given, quote_via=quote)))


def name_of(found: Finding) -> str:
    """The table and column of a finding."""
    return ".".join(filter(None, (found.table, found.column)))


def missing(back: Direction, found: Status) -> str:
    """What the other side does not have of what was written."""
    much = "an unknown amount" if back.lag_bytes is None else f"{size(back.lag_bytes)} of WAL"
    last = found.heartbeats.get(back.sender)
    since = f" since {colours.moment(last)}" if last else ""
    return f"what {back.sender} has written{since} ({much}), which {back.receiver} does not have"
