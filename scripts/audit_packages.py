"""For ./run audit: prints the known vulnerabilities of what a lock file, its argument, pins (pip-audit).

Exits with 1 if there are any, if a library was skipped, or if fewer were looked up than the lock pins for every
platform: an empty lock is not a clean bill of health.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

lock = Path(sys.argv[1])
pinned = len(re.findall(r"^[A-Za-z0-9][^;\n]*==[^;\n]*$", lock.read_text(), re.M))
pip_audit = Path(sys.executable).with_name("pip-audit")
options = "--strict --disable-pip --require-hashes --progress-spinner off --format json -r".split()
done = subprocess.run([pip_audit, *options, lock], stdout=subprocess.PIPE, text=True)
try:
    audited = json.loads(done.stdout)["dependencies"]
except (ValueError, KeyError):
    sys.exit("pip-audit printed no report: nothing was audited.")
for library in audited:
    for found in library["vulns"]:
        fixed = ", ".join(found["fix_versions"]) or "no version"
        print(f"{library['name']} {library['version']}: {found['id']}; fixed in {fixed}")
if not len(audited) >= pinned > 0:
    sys.exit(f"{len(audited)} of {pinned} pinned libraries were audited.")
sys.exit(done.returncode)
