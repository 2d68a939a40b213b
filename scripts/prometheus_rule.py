"""Makes k8s/components/monitoring-rules/rules.yaml, a PrometheusRule, from the files in monitoring/rules.

Kustomize can neither read files outside of k8s/ nor put one into a field of an object.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "k8s" / "components" / "monitoring-rules" / "rules.yaml"

HEAD = """\
# Made by scripts/prometheus_rule.py from monitoring/rules: change those and run the script.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: backstagetest1
  labels:
    app: backstagetest1
spec:
  groups:
"""


def manifest() -> str:
    """Returns the PrometheusRule with the groups of all rule files, comments included."""
    text = HEAD
    for file in sorted((ROOT / "monitoring" / "rules").glob("*.yml")):
        groups = file.read_text().partition("\ngroups:\n")[2]
        text += "".join(f"  {line}".rstrip() + "\n" for line in groups.splitlines())
    return text


def main() -> None:
    """Writes the manifest if it is out of date."""
    text = manifest()
    if not TARGET.exists() or TARGET.read_text() != text:
        TARGET.write_text(text)
        print(TARGET.relative_to(ROOT))


if __name__ == "__main__":
    main()
