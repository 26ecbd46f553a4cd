"""Catches a server, or a process that it began, which outlives who asked for it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from ci.regression import servers
from ci.regression.servers import GUARD, Arm, RunFailed, serving

# A server with a worker in a session of its own, which hears no polite signal.
SERVER = """
import os, subprocess, sys, time
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"
worker = subprocess.Popen(
    [sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
worker.stdout.readline()
print(os.getpid(), worker.pid, flush=True)
if sys.argv[1] == "ends": os._exit(3)
time.sleep(600)
"""
OWNER = f"""
import subprocess, sys, time
command = [sys.executable, "-I", {GUARD!r}, "0.5", sys.executable, "-c", {SERVER!r}, "runs"]
held = subprocess.Popen(command, stdin=subprocess.PIPE)
time.sleep(600)
"""


def guarded(how="runs"):
    command = [sys.executable, "-I", GUARD, "0.5", sys.executable, "-c", SERVER, how]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    return process, [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]


def gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=60)
    return not alive


def test_when_its_input_closes_all_of_it_ends():
    process, begun = guarded()
    process.stdin.close()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert gone(begun)


@pytest.mark.parametrize("number", servers.INTERRUPTS)
def test_a_signal_ends_all_of_it(number):
    process, begun = guarded()
    process.send_signal(number)
    process.wait(60)
    assert gone(begun)


def test_a_server_that_ends_leaves_no_worker_and_its_exit_code():
    command = [sys.executable, "-I", GUARD, "0.5", sys.executable, "-c", SERVER, "ends"]
    done = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    begun = [int(pid) for pid in done.stdout.readline().split()]
    assert done.wait(60) == 3
    assert not any(psutil.pid_exists(pid) for pid in begun)


def test_an_owner_that_is_killed_takes_all_of_it_along():
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    begun = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()]
    owner.kill()
    owner.wait()
    assert gone(begun)


def test_a_command_that_is_not_there_is_said_by_its_name():
    done = subprocess.run(
        [sys.executable, "-I", GUARD, "0.5", "/none/such"],
        stdin=subprocess.PIPE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (127, "/none/such: No such file or directory\n")


def test_further_signals_change_nothing_while_servers_end():
    heard = []

    def interrupted():
        with servers.terminated_like_interrupted():
            try:
                os.kill(os.getpid(), signal.SIGHUP)
                time.sleep(60)
            finally:
                for number in servers.INTERRUPTS:
                    os.kill(os.getpid(), number)
                    heard.append(number)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert heard == list(servers.INTERRUPTS)


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_server_of_this_machine_is_asked_past_every_proxy(name, monkeypatch):
    from tests.regression.stub import serving as stub

    monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    with stub() as url:
        servers.ready(url, 30)
        assert servers.get(url, "/server_info")["page_size"] == 1


def test_a_server_that_never_starts_says_how_it_ended(tmp_path):
    arm = Arm("patched")
    with (
        pytest.raises(RunFailed, match=r"ended with 7 while starting; the end of .*a\.log"),
        serving(arm, f"{sys.executable} -c exit(7)", tmp_path, tmp_path / "a.log", 60),
    ):
        pass
