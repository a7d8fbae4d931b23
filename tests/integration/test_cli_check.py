"""`agent check` and `agent config show`, as their users run them."""

from __future__ import annotations

import json
import shutil
import socket

from support.processes import TOKEN, Line
from support.user import unprivileged

from agent.check import disk, sockets
from agent.settings import load


def check(product, *words):
    """Run it; return its exit code and its findings by what was checked."""
    done = product.run("check", "--json", *words)
    document = json.loads(done.stdout)
    assert document["ok"] == (done.returncode == 0)
    return done.returncode, {finding["check"]: finding for finding in document["findings"]}


def test_all_is_well(product):
    product.start_emulator()

    code, findings = check(product)

    assert code == 0
    assert {finding["state"] for finding in findings.values()} <= {"ok", "warning"}
    expected = {"settings", "daemon", "queue directory", "disk space", "socket", "server", "token", "clock"}
    assert expected | {"scope events:write", "scope events:read"} <= set(findings)
    for name in ("settings", "server", "token", "scope events:write", "scope events:read", "clock"):
        assert findings[name]["state"] == "ok", findings[name]


def test_it_makes_and_sends_nothing(product):
    product.start_emulator()

    check(product)

    assert not product.queue.exists()
    assert not product.socket.exists()
    assert list(product.stored()) == []


def test_a_running_daemon_is_not_disturbed(product):
    product.start_emulator()
    product.start_daemon()
    line = Line(product.socket)
    line.send({"name": "a", "external_customer_id": "c"})
    line.acked(1)
    before = product.log.read_text()

    code, findings = check(product)

    assert code == 0
    assert findings["daemon"]["message"].startswith(f"process {product.daemon.pid} runs")
    assert findings["socket"]["message"] == "takes connections"
    line.send({"name": "b", "external_customer_id": "c"})
    line.acked(2)
    assert product.log.read_text().startswith(before)
    assert '"level": "error"' not in product.log.read_text()
    line.close()
    assert product.status()["ledger"]["accepted"] == 2


def test_a_wrong_key_is_told_with_the_nearest_one_as_wrong_settings_are_everywhere(product, tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text("flush_intervall = 3\nqueue_dri = '/x'\n")

    done = product.run("check", "--json", "--config", str(file))

    assert done.returncode == 2
    findings = json.loads(done.stdout)["findings"]
    assert [finding["state"] for finding in findings] == ["failed", "failed"]
    assert "did you mean flush_interval?" in findings[0]["mend"]
    assert "did you mean queue_dir?" in findings[1]["mend"]
    assert "did you mean flush_interval?" in done.stderr


def test_a_token_that_the_server_does_not_know(product):
    product.start_emulator("--token", "polar_oat_another")

    code, findings = check(product)

    assert code == 1
    assert findings["server"]["state"] == "ok"
    assert findings["token"]["state"] == "failed"
    assert TOKEN not in json.dumps(findings)


def test_a_token_that_may_only_read(product):
    product.start_emulator("--token", f"{TOKEN}=events:read")

    code, findings = check(product)

    assert code == 1
    assert findings["scope events:write"]["state"] == "failed"
    assert "events:write" in findings["scope events:write"]["mend"]


def test_no_server(product):
    code, findings = check(product)

    assert code == 1
    assert findings["server"]["state"] == "failed"
    assert "scope events:write" not in findings


def test_no_token_still_shows_whether_the_server_is_there(product):
    product.start_emulator("--token", TOKEN)
    del product.environ["POLAR_ACCESS_TOKEN"]

    code, findings = check(product)

    assert code == 1
    assert findings["server"]["state"] == "ok"
    assert findings["token"]["state"] == "failed"


def test_a_clock_that_is_wrong(product):
    product.start_emulator()
    product.faults(clock_offset_seconds=-300)

    code, findings = check(product)

    assert code == 0
    assert findings["clock"]["state"] == "warning"
    assert "ahead of" in findings["clock"]["message"]


def test_a_clock_that_is_so_wrong_that_timestamps_are_refused(product):
    product.start_emulator()
    product.faults(clock_offset_seconds=-7200)

    code, findings = check(product)

    assert code == 1
    assert findings["clock"]["state"] == "failed"
    assert "refused" in findings["clock"]["message"]


def test_a_queue_that_others_may_look_into(product):
    product.queue.mkdir(mode=0o755)
    product.queue.chmod(0o755)

    code, findings = check(product, "--offline")

    assert code == 1
    assert findings["queue directory"]["mend"] == f"chmod 700 {product.queue}"


def test_a_queue_behind_a_symbolic_link(product):
    (product.directory / "real").mkdir(mode=0o700)
    product.queue.symlink_to(product.directory / "real")

    _, findings = check(product, "--offline")

    assert findings["queue directory"]["state"] == "ok"
    (product.directory / "real").rmdir()
    (product.directory / "wide").mkdir()
    (product.directory / "wide").chmod(0o777)
    (product.directory / "wide" / "real").mkdir(mode=0o700)
    product.queue.unlink()
    product.queue.symlink_to(product.directory / "wide" / "real")

    code, findings = check(product, "--offline")

    assert code == 1
    assert "symbolic link" in findings["queue directory"]["message"]


def test_a_port_that_another_process_has(product):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        product.set(api_listen=f"127.0.0.1:{stranger.getsockname()[1]}")

        code, findings = check(product, "--offline")

    assert code == 1
    assert findings["api_listen"]["message"] == "another process listens there"
    assert check(product, "--offline")[1]["api_listen"]["state"] == "ok"


def test_a_disk_that_has_no_room(product):
    product.set(disk_reserve_bytes=shutil.disk_usage(product.directory).free + (1 << 40))

    code, findings = check(product, "--offline")

    assert code == 1
    assert findings["disk space"]["state"] == "failed"


def test_a_file_in_the_place_of_the_socket(product):
    product.socket.write_text("precious")

    code, findings = check(product, "--offline")

    assert code == 1
    assert findings["socket"]["state"] == "failed"
    assert product.socket.read_text() == "precious"


def test_a_stranger_on_the_socket(product):
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(product.socket))
        stranger.listen()

        code, findings = check(product, "--offline")

    assert code == 1
    assert "another process" in findings["socket"]["message"]


def test_a_group_and_a_user_that_do_not_exist(product):
    product.set(socket_group="no-such-group", socket_owner="nobody-here", allowed_users="no-such-user")

    code, findings = check(product, "--offline")

    assert code == 1
    assert findings["socket owner"]["state"] == "failed"
    assert findings["socket group"]["state"] == "failed"
    assert findings["allow list"]["state"] == "failed"


def test_a_damaged_queue(product):
    product.queue.mkdir(mode=0o700)
    (product.queue / "cache.db").write_bytes(b"this is no database" * 300)

    code, findings = check(product, "--offline")

    assert code == 1
    assert findings["queue"]["state"] == "failed"
    assert findings["queue"]["mend"]


def test_a_directory_that_may_not_be_written(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    settings = load(
        overrides={"queue_dir": closed / "queue", "socket_path": closed / "agent.sock"}, environ={}
    )

    with unprivileged():
        findings = [*disk.look(settings), *sockets.look(settings, None)]

    states = {finding.check: finding.state for finding in findings}
    assert states["queue directory"] == states["socket directory"] == "failed"


def test_people_get_a_line_for_each_finding_and_a_mend_below_it(product):
    product.start_emulator("--token", "polar_oat_another")

    done = product.run("check", "--quiet")

    assert done.returncode == 1
    lines = done.stdout.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("FAILED  token"))
    assert lines[place + 1].startswith("        put a valid token there")
    assert lines[-1].startswith("1 failed")
    assert not [line for line in lines if line.startswith("ok ")]


def test_config_show_tells_every_setting_and_where_it_comes_from(product, tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text("max_batch_events = 7\n")

    done = product.run("config", "show", "--json", "--config", str(file))

    document = json.loads(done.stdout)
    rows = {row["setting"]: (row["value"], row["from"]) for row in document["settings"]}
    assert rows["max_batch_events"] == (7, str(file))
    assert rows["flush_interval"] == (0.1, "environment variable POLAR_AGENT_FLUSH_INTERVAL")
    assert rows["max_in_flight"] == (4, "default")
    assert document["server_url"] == product.url
    assert TOKEN not in done.stdout + product.run("config", "show").stdout
