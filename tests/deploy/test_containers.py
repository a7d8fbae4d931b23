"""The image, and what runs it: imitated as far as that goes without a container engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from agent import __version__
from agent.cli import COMMANDS
from agent.settings import Settings

ROOT = Path(__file__).parents[2]
MANIFESTS = sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
USER = 10001


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A directory with what the image has at /opt."""
    directory = tmp_path_factory.mktemp("image")
    script = ROOT / "deploy/imitate.py"
    done = subprocess.run([sys.executable, script, directory], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for place in (directory, *directory.parents):
        if place.owner() == "root" or os.access(place, os.W_OK):
            place.chmod(place.stat().st_mode | 0o055)
        if place.name == "tmp":
            break
    return directory


CONTAINER = r"""
# In namespaces of its own: mounts, network, processes.
set -eu
image=$1 places=$2 program=$3
mount --make-rprivate /
mount --bind "$image/opt" /opt
mount --bind "$places/queue" /var/lib
mount -t tmpfs tmpfs /run
mkdir -p /run/polar-agent /run/polar-token
cp "$places/token" /run/polar-token/access_token
chown -R 10001:10001 /run/polar-agent /run/polar-token /var/lib
mount --bind /run/polar-agent /run/polar-agent
# The root file system, and all that is mounted below it but the two volumes, is for reading.
awk '{print $2}' /proc/mounts | sort -u | while read -r point; do
    case $point in /run/polar-agent | /var/lib | /proc | /proc/* | /dev | /dev/* | /sys | /sys/*) ;;
    *) mount -o remount,bind,ro "$point" 2>/dev/null || true ;;
    esac
done
# No network but this machine's own, where the emulator stands for Polar.
/usr/bin/python3 -c '
import fcntl, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    fcntl.ioctl(sock, 0x8914, struct.pack("16sH14x", b"lo", 0x1 | 0x40))
'
exec setpriv --reuid 10001 --regid 10001 --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs \
    env -i PATH=/opt/polar-agent/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 POLAR_AGENT_LOG_FORMAT=json \
    POLAR_AGENT_QUEUE_DIR=/var/lib/queue POLAR_AGENT_ACCESS_TOKEN_FILE=/run/polar-token/access_token \
    POLAR_AGENT_BASE_URL=http://127.0.0.1:8787 POLAR_AGENT_FLUSH_INTERVAL=0.1 sh -c "$program"
"""

STORY = r"""
set -u
for place in / /opt /etc /var /tmp /run; do
    touch "$place/x" 2>/dev/null && echo "it can write to $place" >&2 && exit 90
done
python - <<'NETWORK' || exit 91
import socket
try:
    socket.create_connection(("192.0.2.1", 443), 2)
except OSError as error:
    raise SystemExit(0 if error.errno == 101 else 1)
raise SystemExit(1)
NETWORK
python /run/polar-agent/polar.py & polar=$!
agent run 2>/run/polar-agent/log & daemon=$!
for _ in $(seq 300); do python -m agent.probe readyz && break; sleep 0.1; done
python -m agent.probe healthz || exit 92
for n in 1 2 3; do
    printf '{"name":"n%s","external_customer_id":"c","external_id":"e%s"}\n' $n $n | agent send || exit 93
done
agent flush --timeout 20s || exit 94
python - <<'METRICS' >/run/polar-agent/metrics || exit 89
import http.client, socket
call = http.client.HTTPConnection("agent")
call.sock = socket.socket(socket.AF_UNIX)
call.sock.connect("/run/polar-agent/api.sock")
call.request("GET", "/metrics")
print(call.getresponse().read().decode())
METRICS
grep -q '^polar_agent_events_delivered_total 3' /run/polar-agent/metrics || exit 88
grep '^process_resident_memory_bytes ' /run/polar-agent/metrics || exit 87
agent check --json >/run/polar-agent/check || { cat /run/polar-agent/check >&2; exit 95; }
agent status --json
kill -HUP $daemon
for _ in $(seq 300); do grep -q 'settings were reloaded' /run/polar-agent/log && break; sleep 0.1; done
kill $daemon; wait $daemon || exit 96
python -m agent.probe readyz && exit 97
grep -q 'settings were reloaded' /run/polar-agent/log || { cat /run/polar-agent/log >&2; exit 98; }
kill $polar
exit 0
"""

# The least that can stand for Polar, with what the image itself has.
POLAR = """
import http.server, json
class Polar(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        events = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["events"]
        self.answer({"inserted": len(events), "duplicates": 0})
    def do_GET(self):
        self.answer({"items": [], "pagination": {"total_count": 0, "max_page": 0}})
    def answer(self, document):
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8787), Polar).serve_forever()
"""


@pytest.mark.needs("unshare")
@pytest.mark.needs("setpriv")
@pytest.mark.timeout(300)
def test_read_only_without_root_and_without_network_it_does_all_of_its_job(image, tmp_path):
    """As uid 10001 without any capability, on a root file system that is read-only, with loopback alone."""
    (tmp_path / "queue").mkdir()
    (tmp_path / "token").write_text("polar_oat_test")
    story = f"cat >/run/polar-agent/polar.py <<'POLAR'\n{POLAR}\nPOLAR\n{STORY}"
    mapped = [] if os.geteuid() == 0 else ["--map-root-user", "--map-auto"]
    done = subprocess.run(
        [
            "unshare",
            *mapped,
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            CONTAINER,
            "sh",
            image,
            tmp_path,
            story,
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, (done.stdout, done.stderr)
    status = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"version"')))
    assert status["ledger"]["accepted"] == status["ledger"]["delivered"] == 3
    assert status["queue"]["path"] == "/var/lib/queue"
    resident = float(re.search(r"^process_resident_memory_bytes (\S+)$", done.stdout, re.MULTILINE).group(1))
    assert 10e6 < resident <= 55e6, "with the API and metrics in use"


# -- the manifests ---------------------------------------------------------------------


def documents(path):
    return list(yaml.safe_load_all(path.read_text()))


def pod(path):
    return documents(path)[0]["spec"]["template"]["spec"]


def agents(path):
    spec = pod(path)
    return [c for c in (*spec.get("initContainers", []), *spec["containers"]) if c["name"] == "polar-agent"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_kubernetes_takes_the_manifest(path, version):
    for document in documents(path):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_validator_would_find_a_mistake():
    (document,) = documents(MANIFESTS[0])
    document["spec"]["template"]["spec"]["containers"][0]["restartPolicies"] = "Always"

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.37", strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_the_agents_container_may_do_nothing_that_it_need_not(path):
    (agent,) = agents(path)
    context = agent["securityContext"]
    assert context["runAsNonRoot"]
    assert context["readOnlyRootFilesystem"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["runAsUser"] == USER
    assert f"USER {USER}" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_it_speaks_of_settings_and_commands_that_there_are(path):
    (agent,) = agents(path)
    for variable in agent["env"]:
        assert variable["name"].removeprefix("POLAR_AGENT_").lower() in Settings.model_fields
    assert agent["args"] == ["run"]
    program, command, *_ = agent["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "agent"
    assert command in COMMANDS
    for probe, what in (
        ("startupProbe", "readyz"),
        ("livenessProbe", "healthz"),
        ("readinessProbe", "readyz"),
    ):
        assert agent[probe]["exec"]["command"] == ["python", "-m", "agent.probe", what]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_there_is_time_for_the_flush_and_the_drain(path):
    (agent,) = agents(path)
    flush = agent["lifecycle"]["preStop"]["exec"]["command"]
    seconds = float(flush[flush.index("--timeout") + 1].removesuffix("s"))
    drain = Settings.model_fields["shutdown_timeout"].default

    assert pod(path)["terminationGracePeriodSeconds"] > seconds + drain + 5


def test_the_sidecar_is_a_native_one_whose_queue_stays():
    (agent,) = agents(ROOT / "deploy/kubernetes/sidecar.yaml")
    (document,) = documents(ROOT / "deploy/kubernetes/sidecar.yaml")
    assert agent in document["spec"]["template"]["spec"]["initContainers"]
    assert agent["restartPolicy"] == "Always"
    mounts = {mount["mountPath"]: mount["name"] for mount in agent["volumeMounts"]}
    claims = [claim["metadata"]["name"] for claim in document["spec"]["volumeClaimTemplates"]]
    assert mounts["/var/lib/polar-agent"] in claims
    (application,) = document["spec"]["template"]["spec"]["containers"]
    assert mounts["/run/polar-agent"] in [mount["name"] for mount in application["volumeMounts"]]


def test_the_image_of_the_manifests_is_of_this_version():
    for path in MANIFESTS:
        for image_ in re.findall(r"image: polar-agent:(\S+)", path.read_text()):
            assert image_ == __version__


# -- compose ---------------------------------------------------------------------------


def test_compose_has_application_agent_and_emulator_that_share_what_they_must():
    services = COMPOSE["services"]
    assert set(services) == {"app", "agent", "emulator"}
    assert "socket:/run/polar-agent" in services["app"]["volumes"]
    assert set(services["agent"]["volumes"]) == {"queue:/var/lib/polar-agent", "socket:/run/polar-agent"}
    assert set(COMPOSE["volumes"]) == {"queue", "socket"}
    assert services["agent"]["read_only"]
    assert services["agent"]["cap_drop"] == ["ALL"]
    # Plain http is for loopback only: so the two share a network.
    assert services["agent"]["network_mode"] == "service:emulator"
    stage = services["emulator"]["build"]["target"]
    assert f" AS {stage}\n" in (ROOT / "Dockerfile").read_text()


def test_compose_gives_the_agent_settings_that_there_are():
    names = {
        name.removeprefix("POLAR_AGENT_").removeprefix("POLAR_").lower()
        for name in COMPOSE["services"]["agent"]["environment"]
    }
    assert names <= set(Settings.model_fields)


def test_the_applications_command_is_one_that_runs(product):
    """One turn of its loop, with the agent on this machine."""
    product.start_emulator()
    product.start_daemon()
    (script,) = COMPOSE["services"]["app"]["command"]
    line = (
        re.search(r"printf .*?agent send", script, re.DOTALL)
        .group()
        .replace("agent send", f"{shlex.quote(sys.executable)} -m agent send")
    )
    done = subprocess.run(
        ["sh", "-c", line], env=product.environ, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert product.status()["ledger"]["accepted"] == 1
