"""The doctor: what it finds, and that each complaint comes with a mend."""

import os
import socket
import subprocess
import sys
import threading
from collections import namedtuple

import pytest
from rich.console import Console

from raysys.stages import doctor
from raysys.stages.doctor import FAIL, OK, WARN
from raysys.storage import Workspace

Process = namedtuple("Process", "pid info")
HAPROXY = Process(77, {"name": "haproxy", "cmdline": ["haproxy", "-f", "/tmp/haproxy-serve/h.cfg"]})
HEAD = Process(78, {"name": "gcs_server", "cmdline": ["gcs_server", "--port=6379"]})
OTHER_PROXY = Process(79, {"name": "haproxy", "cmdline": ["haproxy", "-f", "/etc/haproxy.cfg"]})
Usage = namedtuple("Usage", "total used free")


def states(findings) -> dict[str, str]:
    return {finding.name: finding.state for finding in findings}


def test_every_complaint_has_a_mend(tmp_path):
    findings = doctor.examine(Workspace(tmp_path / "none" / "yet"))
    assert {finding.area for finding in findings} == {
        *("versions", "ray", "gpu", "memory", "disk", "ports", "auth", "data"),
    }
    for finding in findings:
        assert finding.state in (OK, WARN, FAIL)
        assert bool(finding.mend) == (finding.state != OK)
        assert finding.found


def test_both_builds_of_xgboost_are_a_failure(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "3.2.0")
    assert states(doctor.versions())["xgboost"] == FAIL
    monkeypatch.setattr(doctor, "_version", lambda name: None if "xgb" in name else "1")
    assert states(doctor.versions())["xgboost"] == FAIL


def test_a_proxy_that_outlived_its_cluster_is_a_failure():
    (left, *_) = doctor.ray_state([HAPROXY], "")
    assert (left.name, left.state) == ("HAProxy", FAIL)
    assert "kill 77" in left.mend
    assert "HAProxy" not in states(doctor.ray_state([HAPROXY, HEAD], ""))
    assert "HAProxy" not in states(doctor.ray_state([OTHER_PROXY], ""))


def test_ray_address_is_tried():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"http://127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            assert states(doctor.ray_state([], address))["RAY_ADDRESS"] == OK
    assert states(doctor.ray_state([], f"127.0.0.1:{port}"))["RAY_ADDRESS"] == FAIL
    assert states(doctor.ray_state([], "127.0.0.1:no"))["RAY_ADDRESS"] == FAIL
    assert states(doctor.ray_state([], "auto"))["RAY_ADDRESS"] == FAIL
    assert states(doctor.ray_state([HEAD], "auto"))["RAY_ADDRESS"] == OK
    assert states(doctor.ray_state([], ""))["RAY_ADDRESS"] == OK


def test_a_held_port_names_its_holder():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (held,) = doctor.ports({port: "HTTP"})
    assert held.state == WARN
    assert "python" in held.found
    assert str(os.getpid()) in held.found
    assert states(doctor.ports({port: "HTTP"})) == {str(port): OK}


@pytest.mark.parametrize(
    ("name", "command", "is_rays"),
    [
        ("ray::ServeReplic", "ray::ServeReplica:shop:Shop", True),
        ("raylet", "/venv/ray/core/src/ray/raylet/raylet --raylet_socket_name=x", True),
        ("gcs_server", "/venv/ray/core/src/ray/gcs/gcs_server --log_dir=x", True),
        ("haproxy", "haproxy -f /tmp/haproxy-serve/h.cfg", True),
        ("ray", "/venv/bin/python /venv/bin/ray start --head --block", True),
        ("python", "/venv/bin/python -u /venv/site-packages/ray/dashboard/dashboard.py", True),
        ("python", "/venv/bin/python -m ray.util.client.server --port=10001", True),
        ("python", "/home/ray/venv/bin/python /home/ray/shop/server.py", False),
        ("python", "python server.py --root /home/ray", False),
        ("array-server", "/opt/array-server --port 8000", False),
        ("another program", "", False),
    ],
)
def test_a_path_with_ray_in_it_makes_no_process_of_ray(name, command, is_rays):
    assert doctor._is_rays(name, command.split()) == is_rays


def test_a_held_port_is_not_ray_s_because_of_a_name(tmp_path):
    (tmp_path / "x-ray.py").write_text(
        "import socket\n"
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "    print(server.getsockname()[1], flush=True)\n"
        "    server.accept()\n"
    )
    command = [sys.executable, "x-ray.py"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as other:
        port = int(other.stdout.readline())
        (held,) = doctor.ports({port: "HTTP"})
        other.kill()
    assert held.state == WARN
    assert str(other.pid) in held.found


def test_a_port_that_speaks_no_http_is_no_finding():
    with socket.create_server(("0.0.0.0", 0)) as server:

        def greet():
            accepted, _ = server.accept()
            with accepted:
                accepted.recv(1000)
                accepted.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        greeting = threading.Thread(target=greet)
        greeting.start()
        assert list(doctor.guarded(server.getsockname()[1])) == []
        greeting.join()


@pytest.mark.parametrize(
    ("total", "used", "free", "state"),
    [(1000, 10, 500, OK), (1000, 996, 3, WARN), (1000, 970, 30, WARN), (100, 99, 0.5, FAIL)],
)
def test_disks(monkeypatch, tmp_path, total, used, free, state):
    usage = Usage(total * doctor.GB, used * doctor.GB, free * doctor.GB)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert states(doctor.disk(tmp_path))["workspace"] == state


def test_a_small_container_and_small_shared_memory_are_warned_of(monkeypatch):
    monkeypatch.setattr(doctor, "_container_limit", lambda: 4 * doctor.GB)
    small = Usage(64 << 20, 0, 64 << 20)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: small)
    found = states(doctor.memory())
    assert (found["RAM"], found["shared"]) == (WARN, WARN)


def test_the_token(tmp_path):
    def token(**environment: str) -> str:
        return states(doctor.auth(environment, tmp_path))["token"]

    assert token() == OK
    assert token(RAY_AUTH_TOKEN_PATH=str(tmp_path / "none")) == FAIL
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("")
    file.chmod(0o600)
    assert token() == FAIL
    file.write_text("secret")
    assert token() == OK
    file.chmod(0o644)
    assert token() == WARN
    assert token(RAY_AUTH_TOKEN="x") == OK


def test_a_token_that_cannot_be_read_is_a_failure(tmp_path):
    file = tmp_path / "private" / "auth_token"
    file.parent.mkdir()
    file.write_text("secret")
    file.chmod(0o600)
    file.parent.chmod(0)
    me = os.geteuid()
    try:
        if me == 0:  # who may read everything
            os.seteuid(65_534)
        found = {f.name: f for f in doctor.auth({"RAY_AUTH_TOKEN_PATH": str(file)}, tmp_path)}
    finally:
        if me == 0:
            os.seteuid(me)
        file.parent.chmod(0o700)
    assert found["token"].state == FAIL
    assert "Permission denied" in found["token"].found
    assert "unset RAY_AUTH_TOKEN_PATH" in found["token"].mend


@pytest.mark.parametrize(
    ("mode", "state"), [("", OK), ("token", OK), ("disabled", WARN), ("tokn", FAIL)]
)
def test_the_auth_mode(tmp_path, mode, state):
    assert states(doctor.auth({"RAY_AUTH_MODE": mode}, tmp_path))["RAY_AUTH_MODE"] == state


def test_a_gpu_that_torch_cannot_use_is_warned_of(monkeypatch, tmp_path):
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'NVIDIA X, 80000 MiB'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(doctor.util, "find_spec", lambda _: None)
    monkeypatch.setattr(doctor, "_version", lambda name: {"torch": "2.13.0+cpu"}.get(name))
    assert states(doctor.gpu()) == {"NVIDIA": WARN}
    monkeypatch.setattr(doctor, "_version", lambda name: {"torch": "2.13.0+cu130"}.get(name))
    assert states(doctor.gpu()) == {"NVIDIA": OK}


def test_a_missing_model_names_the_package(monkeypatch):
    monkeypatch.setattr(doctor.util, "find_spec", lambda _: None)
    for finding in doctor.data():
        assert finding.state == FAIL
        assert finding.name in finding.mend


def test_the_table_shows_findings_as_they_are():
    finding = doctor.Finding("ray", "RAY_ADDRESS", FAIL, "[red]x[/]: refused", "unset it")
    console = Console(width=100, record=True, quiet=False)
    doctor.show([finding], console)
    shown = console.export_text()
    assert "[red]x[/]: refused" in shown
    assert "mend: unset it" in shown
    assert "1 looked at: 1 fail, 0 warn" in shown
