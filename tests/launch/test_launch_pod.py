"""Smoke: launch/tpu_pod.sh with a recording stand-in for gcloud."""

import signal
import subprocess

import pytest

from tests.launching import REPO, finish, start, wait_for

# The state of the cloud is the file $STATE. $SCRIPT lists how the runs end: "CODE", "CODE:gone" (the TPU was taken
# away), "CODE:worker" (the output says that another host ended with 2) or "wait" (until asked to stop).
GCLOUD = """
record()
state, script = Path(os.environ["STATE"]), Path(os.environ["SCRIPT"])
now = state.read_text() if state.exists() else ""
match arguments[2:4]:
    case ["queued-resources", "describe"]:
        print({"": "", "ACCEPTED": "WAITING_FOR_RESOURCES", "READY": "ACTIVE", "PREEMPTED": "SUSPENDED"}[now])
        if now == "ACCEPTED": state.write_text("READY")
        sys.exit(not now)
    case ["queued-resources", "create"]: state.write_text("ACCEPTED")
    case ["queued-resources", "delete"]: state.unlink()
    case ["tpu-vm", "describe"]:
        if now not in ("READY", "PREEMPTED"): sys.exit(1)
        print(now)
    case ["tpu-vm", "ssh"] if "dwrl_jax.train" in arguments[-1]:
        print("training")
        first, *rest = script.read_text().split()
        script.write_text(" ".join(rest))
        code, _, more = first.partition(":")
        if more == "gone": state.write_text("PREEMPTED")
        if more == "worker":
            print("##### Command execution on worker 3 failed with exit status 2. Continuing.", file=sys.stderr)
        if code == "wait":
            while not Path(os.environ["STATE"] + ".asked").exists(): time.sleep(0.02)
            code = 143
        sys.exit(int(code))
    case ["tpu-vm", "ssh"] if "kill -TERM" in arguments[-1]:
        Path(os.environ["STATE"] + ".asked").touch()
"""
NODE = ["--name=pod", "--zone=us-east5-b", "--project=p", "--poll=0"]
CREATE = ["--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e"]
WHERE = ["pod", "--zone=us-east5-b", "--project=p"]
TRAIN = ["--", "--config=configs/qwen7b.py", "--workdir=~/b/my run"]


@pytest.fixture
def pod(stand_in, tmp_path):
    """A function that runs tpu_pod.sh with what its runs will end with, and returns it with its calls of gcloud."""
    stand_in.add("gcloud", GCLOUD)
    state, script = tmp_path / "state", tmp_path / "script"
    env = stand_in.env | {"STATE": str(state), "SCRIPT": str(script), "TMPDIR": str(tmp_path)}

    def begin(codes, *arguments, ready=False):
        script.write_text(codes)
        if ready:
            state.write_text("READY")
        return start("tpu_pod.sh", *NODE, f"--logs={tmp_path / 'logs'}", *arguments, *TRAIN, env=env)

    def whole(*arguments, **options):
        return finish(begin(*arguments, **options))

    whole.begin = begin
    return whole


def did(stand_in, *verbs):
    """The arguments of gcloud behind `gcloud compute tpus`, of these verbs or of all but describe."""
    calls = [call["arguments"] for call in stand_in.calls("gcloud")]
    assert all(call[:2] == ["compute", "tpus"] for call in calls)
    return [call[2:] for call in calls if (call[3] in verbs if verbs else call[3] != "describe")]


def kinds(stand_in):
    def kind(call):
        return ("run" if "dwrl_jax.train" in call[-1] else "install") if call[1] == "ssh" else call[1]

    return " ".join(kind(call) for call in did(stand_in))


def test_pod_goes_on_after_a_preemption(pod, stand_in, tmp_path):
    """Preempted, run again on a new TPU, done and deleted: every command line."""
    result = pod("255:gone 0", *CREATE, "--spot", "--delete", "--setup=mount it")
    assert result.returncode == 0, result.stderr
    assert kinds(stand_in) == "create scp install run delete create scp install run delete"
    create, scp, install, first, delete, *again = did(stand_in)
    assert create == ["queued-resources", "create", "pod", "--node-id=pod", *WHERE[1:], *CREATE, "--spot"]
    assert scp[:2] + scp[3:] == ["tpu-vm", "scp", "pod:dwrl_jax.tar.gz", *WHERE[1:], "--worker=all"]
    alive = ["--ssh-flag=-oServerAliveInterval=30", "--ssh-flag=-oServerAliveCountMax=4"]
    assert install[:-1] == first[:-1] == ["tpu-vm", "ssh", *WHERE, "--worker=all", *alive]
    assert install[-1].startswith("--command=(mount it) && mkdir -p dwrl_jax && tar -xzf dwrl_jax.tar.gz")
    assert ".venv/bin/pip install -q -e '.[tpu]'" in install[-1]
    assert first[-1] == (
        "--command=cd ~/dwrl_jax && exec 9>run.lock && flock 9 && echo $$ >run.pid && . launch/tpu_flags.env && "
        "exec env DWRL_JAX_DISTRIBUTED=auto "
        ".venv/bin/python -m dwrl_jax.train --config=configs/qwen7b.py --workdir=\\~/b/my\\ run"
    )
    assert delete == ["queued-resources", "delete", *WHERE, "--force", "--quiet"]
    assert [call for call in again if call[1] != "scp"] == [create, install, first, delete]
    described = did(stand_in, "describe")
    assert ["queued-resources", "describe", *WHERE, "--format=value(state.state)"] in described
    assert ["tpu-vm", "describe", *WHERE, "--format=value(state)"] in described
    logs = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert logs == ["attempt-1.log", "attempt-2.log"]
    assert "training\n" in (tmp_path / "logs" / "attempt-2.log").read_text() and "training\n" in result.stdout
    assert not list(tmp_path.glob("dwrl_jax.*")), "the archive is left behind"


@pytest.mark.parametrize("code", ["2", "1:worker"])
def test_pod_does_not_repeat_bad_input(pod, stand_in, code):
    result = pod(code, *CREATE, "--delete")
    assert result.returncode == 2 and "bad input" in result.stderr
    assert kinds(stand_in) == "create scp install run"
    assert "queued-resources delete pod --zone=us-east5-b --project=p --force --quiet" in result.stderr


def test_pod_gives_up_on_a_run_that_keeps_failing(pod, stand_in):
    result = pod("1 1:gone 1 134", *CREATE, "--max-failures=2")
    assert result.returncode == 134 and "2 times in a row" in result.stderr
    assert kinds(stand_in).count("run") == 4 and kinds(stand_in).count("create") == 2
    assert "--spot" not in did(stand_in, "create")[0]


def test_pod_uses_an_existing_tpu(pod, stand_in):
    result = pod("0", "--existing", "--repo=https://host/x y.git", ready=True)
    assert result.returncode == 0, result.stderr
    assert kinds(stand_in) == "install run"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPO, capture_output=True, text=True).stdout.strip()
    install = did(stand_in, "ssh")[0][-1]
    assert "git clone -q https://host/x\\ y.git dwrl_jax" in install and f"checkout -q {commit}" in install


def test_pod_that_is_not_there(pod, stand_in):
    result = pod("0", "--existing")
    assert result.returncode == 1 and "not READY but not there" in result.stderr and not did(stand_in)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_pod_asks_the_hosts_to_stop(pod, stand_in, number, code):
    process = pod.begin("wait 0", "--existing", ready=True)
    wait_for(lambda: stand_in.calls_file.exists() and kinds(stand_in).endswith("run"))
    process.send_signal(number)
    result = finish(process)
    assert result.returncode == code and "the same command goes on" in result.stderr
    assert did(stand_in)[-1][-1].endswith('{ flock -n run.lock true || kill -TERM "$(cat run.pid)"; }')
    assert kinds(stand_in).count("run") == 1


def test_the_commands_for_the_hosts_work(pod, stand_in, tmp_path):
    """Unpacking, the lock, the pid file and the exit code, in a home folder of this machine, without a network."""
    pod("0", "--existing", ready=True)
    install, train = (call[-1].removeprefix("--command=") for call in did(stand_in, "ssh"))
    home = tmp_path / "home"
    (home / "dwrl_jax" / ".venv" / "bin").mkdir(parents=True)
    subprocess.run(
        ["git", "archive", "--format=tar.gz", f"--output={home}/dwrl_jax.tar.gz", "HEAD"], cwd=REPO, check=True
    )
    stand_in.add("python3", "record(); sys.exit(0)")
    stand_in.add("pip", "record(cwd=os.getcwd())")
    flags = "flags=os.environ['LIBTPU_INIT_ARGS']"
    stand_in.add("python", f"record(pid=os.getpid(), cwd=os.getcwd(), {flags}); sys.exit(143)")
    for name in ("pip", "python"):
        (stand_in.folder / name).rename(home / "dwrl_jax" / ".venv" / "bin" / name)
    env = stand_in.env | {"HOME": str(home)}
    for _ in range(2):  # installed once only
        result = subprocess.run(["bash", "-c", install], cwd=home, env=env, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert (home / "dwrl_jax" / "configs" / "tiny.py").exists()
    (pip,) = stand_in.calls("pip")
    assert pip["arguments"] == ["install", "-q", "-e", ".[tpu]"] and pip["cwd"] == str(home / "dwrl_jax")
    assert subprocess.run(["bash", "-c", train], cwd=home, env=env).returncode == 143
    (call,) = stand_in.calls("python")
    assert call["arguments"] == ["-m", "dwrl_jax.train", *TRAIN[1:]] and call["cwd"] == str(home / "dwrl_jax")
    assert call["flags"].startswith("--xla_enable_async_all_reduce=true ")
    assert (home / "dwrl_jax" / "run.pid").read_text() == f"{call['pid']}\n"
