"""manage.py deploy: a version to an environment, watched, and taken back by itself if it proves bad."""

import re
from dataclasses import replace
from typing import Any

from django.core.management.base import CommandParser

from deploy.errors import InvalidUsage
from deploy.management.base import Operation
from ledger.environments import REPOSITORY, EnvironmentConfig

WATCH = {"production": 720.0}  # seconds: long enough for what fails after ten minutes
WATCH_ELSEWHERE = 60.0
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Command(Operation):
    help = "Deploy a version: promotion rule, lock, migrations, bring up, smoke test, switch, watch, keep or go back."
    watch_help = "watch the release for so long under traffic (default 60, in production 720)"
    examples = """\
examples:
  manage.py deploy 1.4.0 -e staging
  manage.py deploy 1.4.0 -e production --dry-run
  manage.py deploy 1.4.1 -e production --hotfix --reason "Nobody can sign in"
  manage.py deploy 1.4.0 -e development --watch 20 --json
  manage.py deploy 1.4.0 -e staging --image registry.example.com/team/backstagetest1@sha256:...
  manage.py deploy --lock "The database is being moved" -e production
  manage.py deploy --unlock -e production

Run the same command again to resume an interrupted run. docs/deploying.md explains each step.
"""

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("version", nargs="?", default="", metavar="VERSION", help="the image's tag")
        super().add_arguments(parser)
        parser.add_argument(
            "--image",
            default="",
            metavar="REPOSITORY[@DIGEST]",
            help="instead of environments.toml's; with a digest it is that build of the version and no other",
        )
        parser.add_argument("--hotfix", action="store_true", help="skip the promotion rule; requires --reason")
        parser.add_argument(
            "--unsafe-migrations",
            action="store_true",
            help="migrate although the previous release may not run on the new schema; requires --reason",
        )
        parser.add_argument(
            "--lock", default="", metavar="MESSAGE", help="keep everybody from deploying, until --unlock"
        )
        parser.add_argument("--unlock", action="store_true", help="remove a lock, whoever's it is")

    def operate(self, place: EnvironmentConfig, options: dict[str, Any]) -> int:
        version = options["version"]
        if options["lock"] or options["unlock"]:
            if version or (options["lock"] and options["unlock"]):
                raise InvalidUsage("--lock and --unlock stand alone: manage.py deploy --lock MESSAGE -e ENVIRONMENT")
            return self.by_hand(place, options)
        if not version:
            raise InvalidUsage("Missing VERSION: manage.py deploy VERSION -e ENVIRONMENT")
        for flag in ("hotfix", "unsafe_migrations"):
            if options[flag] and not options["reason"].strip():
                raise InvalidUsage(f"--{flag.replace('_', '-')} requires a reason: --reason TEXT")
        if options["image"]:
            place = built(place, options["image"], version)
        target = self.target(place, version)
        target.validate()
        self.sure(place, options, f"Deploys {version} to production")
        watch = options["watch"]
        return self.run(
            target,
            place,
            version,
            options,
            watch=WATCH.get(place.name, WATCH_ELSEWHERE) if watch is None else watch,
            unsafe_migrations=options["unsafe_migrations"],
        )

    def by_hand(self, place: EnvironmentConfig, options: dict[str, Any]) -> int:
        target = self.target(place, "")
        if options["unlock"]:
            whose = target.lock.clear()
            self.output.note(f"Unlocked. {whose}." if whose else "There was no lock.")
        else:
            purpose = self.fitted("message", options["lock"])
            target.lock.put(purpose)
            self.output.note(f"Locked: {purpose}. Unlock with: manage.py deploy --unlock -e {place.name}")
        return 0


def built(place: EnvironmentConfig, image: str, version: str) -> EnvironmentConfig:
    """The place with that image; a tag in it can only be the version. Raises InvalidUsage."""
    name, _, digest = image.partition("@")
    name = name.removesuffix(f":{version}")
    if not REPOSITORY.fullmatch(name) or (digest or "@" in image) and not DIGEST.fullmatch(digest):
        raise InvalidUsage(
            f"--image {image}: expected a repository, as in host/team/backstagetest1, with nothing or @sha256: and 64 "
            f"hex digits behind it. Its tag is the version, {version}."
        )
    if digest and place.target == "compose":
        raise InvalidUsage("--image with a digest is for a cluster: compose runs the image that is on the machine.")
    return replace(place, image=name, digest=digest)
