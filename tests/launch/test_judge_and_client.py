"""Smoke: the script that serves a judge for a command, with recording stand-ins for both."""

import os
import signal

import pytest

from tests.launching import run, start, wait_for

SERVER = """
if "dwrl_jax.serve" not in arguments:
    record(url=os.environ.get("DWRL_JAX_URL")); {client}; sys.exit(0)
def ended(*_):
    record(saw="TERM"); sys.exit(0)
signal.signal(signal.SIGTERM, ended)
record()
{server}
print("ready at http://127.0.0.1:1234", flush=True)
while True: time.sleep(0.02)
"""
ARGS = ["--model=runs/tiny", "--votes=4", "--", "python", "client.py", "a b"]


@pytest.fixture
def script(stand_in, tmp_path):
    def make(client="pass", server="pass"):
        stand_in.add("python", SERVER.format(client=client, server=server))
        return {"env": stand_in.env | {"TMPDIR": str(tmp_path)}}

    return make


def test_the_command_runs_beside_the_server_and_the_server_is_stopped(stand_in, script, tmp_path):
    result = run("judge_and_client.sh", *ARGS, **script(server="time.sleep(0.3)"))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    server, client, ended = stand_in.calls()
    assert server["arguments"] == ["-m", "dwrl_jax.serve", "--port=0", "--model=runs/tiny", "--votes=4"]
    assert client["arguments"] == ["client.py", "a b"] and client["url"] == "http://127.0.0.1:1234"
    assert ended["saw"] == "TERM" and not list(tmp_path.glob("dwrl_jax_serve.*"))


def test_the_exit_code_is_the_command_s(stand_in, script):
    result = run("judge_and_client.sh", *ARGS, **script(client="print('no'); sys.exit(7)"))
    assert result.returncode == 7 and result.stdout == "no\n" and stand_in.calls()[-1]["saw"] == "TERM"


@pytest.mark.parametrize(("server", "code"), [("print('bad model'); sys.exit(2)", 2), ("sys.exit(0)", 1)])
def test_a_server_that_does_not_start(stand_in, script, server, code):
    result = run("judge_and_client.sh", *ARGS, **script(server=server))
    assert result.returncode == code and "the server ended with exit code" in result.stderr
    assert ("bad model" in result.stderr) == (code == 2) and len(stand_in.calls()) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_both(stand_in, script, number, code):
    process = start("judge_and_client.sh", *ARGS, **script(client="time.sleep(30)"))
    wait_for(lambda: len(stand_in.calls()) == 2)
    os.kill(process.pid, number)
    assert process.wait(10) == code
    assert stand_in.calls()[-1].get("saw") == "TERM"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--", "x"], "--model is missing"),
        (["--model=m"], "the command is missing"),
        (["--model=m", "--"], "the command is missing"),
        (["runs/tiny"], "runs/tiny: unknown"),
    ],
)
def test_bad_flags_give_one_line(arguments, says):
    result = run("judge_and_client.sh", *arguments)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and says in result.stderr
