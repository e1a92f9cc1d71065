"""`fledge launch`: what it refuses, prints and writes. Its commands and scripts train in e2e/test_machines.py."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import install

from fledge.cli import main
from fledge.launching.ray import check_room, environment
from fledge.layouts import read_layout


ROOT = Path(__file__).parents[1]
TINY = "recipes/tiny"
PRETRAIN = f"{TINY}/pretrain.yaml"
ZERO = """\
distributed_type: DEEPSPEED
num_machines: 2
num_processes: 16
deepspeed_config: {zero_stage: 1, deepspeed_multinode_launcher: standard}
"""
SHARDED = """\
distributed_type: FSDP
num_processes: 8
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_state_dict_type: FULL_STATE_DICT
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tiny recipe, its steps 8 times as large, and a layout of 2 machines x 8 GPUs; nothing ran."""
    shutil.copytree(ROOT / "tests/e2e/tiny", tmp_path / TINY)
    for name, small, large in (("pretrain", 1536, 12288), ("sft", 1024, 8192), ("dpo", 4, 32)):
        path = tmp_path / TINY / f"{name}.yaml"
        text = path.read_text().replace(f"_per_step: {small}\n", f"_per_step: {large}\n")
        path.write_text(re.sub(r"muon_learning_rate: .*\n", "", text))  # ZeRO refuses it
    for name in ("chat_templates", "accelerate_configs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "zero.yaml").write_text(ZERO)
    (tmp_path / "sharded.yaml").write_text(SHARDED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([PRETRAIN], "launch: the following arguments are required: --on"),
        (
            [PRETRAIN, "--on", "zero.yaml", "--nodes", "3"],
            "--nodes 3: so many machines cannot share the 16 process(es) ",
        ),
        (
            [PRETRAIN, "--on", "zero.yaml", "--nodes", "3"],
            "of zero evenly; take 1 or 2 or 4 or 8 or 16, or another layout",
        ),
        (
            [PRETRAIN, "--on", "cpu", "--nodes", "2"],
            "cannot share the 1 process(es) of cpu evenly; take 1, or another",
        ),
        ([PRETRAIN, "--on", "cpu", "--nodes", "0"], "--nodes 0: so many"),
        (
            [PRETRAIN, "--on", "cpu", "--max_stebs", "3"],
            "command line: --max_stebs: unknown key; did you mean max_steps?",
        ),
        (
            [TINY, "--on", "cpu", "--max_steps", "3"],
            f"--max_steps 3: a key belongs to one recipe; name a file of {TINY}",
        ),
        (
            [PRETRAIN, "--on", "zero.yaml", "--tokens_per_step", "1536"],
            f"{PRETRAIN}: on zero: 8 rows a step do not divide by 16 processes; 8 do",
        ),
        (
            [PRETRAIN, "--on", "cpu", "--tokens_per_step", "1000"],
            f"{PRETRAIN}: tokens_per_step: 1000 is no multiple of the 192 tokens of a row; nearest: 960 or 1152",
        ),
        (
            [PRETRAIN, "--on", "zero.yaml", "--nodes", "1"],
            "--nodes 1: zero.yaml is a layout of 2 machines; take",
        ),
        (["zero.yaml", "--on", "cpu"], "zero.yaml: no recipe; a recipe's name begins with its stage, one of corpus, "),
        ([PRETRAIN, "--on", "cpu", "--partition", "p"], "--partition: only --via slurm takes it"),
        ([PRETRAIN, "--on", "cpu", "--via", "ray", "--main_process_ip", "h"], "only --via accelerate takes it"),
        ([TINY, "--on", "cpu", "--via", "ray"], f"--via ray: {TINY}: name one recipe of pretrain, sft, dpo"),
        ([f"{TINY}/export.yaml", "--on", "cpu", "--via", "ray"], "export.yaml: name one recipe of pretrain, sft, dpo"),
        ([PRETRAIN, "--on", "cpu", "--via", "slurm", "--time", "1h; x"], "--time: '1h; x' is not what sbatch takes"),
        (
            [f"{TINY}/sft.yaml", "--on", "cpu", "--via", "slurm"],
            f"runs/tiny/pretrain, which {PRETRAIN} has not finished",
        ),
        (
            [f"{TINY}/prepare.yaml", "--on", "cpu", "--via", "slurm", "--executor", "slurm"],
            "prepare.yaml: executor: slurm queues jobs of its own",
        ),
    ],
)
def test_mistakes(argv: list[str], message: str, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["launch", *argv]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fledge: ") and message in said
    assert not list(folder.glob("runs/**/*.sh"))


def test_run_leaves_several_machines_to_launch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", TINY, "--on", "zero.yaml"]) == 2
    assert f"2 machines; fledge launch {TINY} --on zero.yaml is what starts several" in capsys.readouterr().err


def test_two_machines_get_a_command_each(capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--main_process_ip", "bird", "--main_process_port", "29501"]
    assert main(["launch", PRETRAIN, "--on", "zero.yaml", *where, "--max_steps", "3"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# zero: 2 machines, 8 process(es) on each, in this folder, shared by all."
    assert [line for line in lines if not line.startswith("#")] == [
        "accelerate launch --config_file zero.yaml --num_machines 2 --num_processes 16 "
        "--deepspeed_multinode_launcher standard --num_cpu_threads_per_process 1 "
        f"--machine_rank {rank} --main_process_ip bird --main_process_port 29501 "
        f"-m fledge pretrain {PRETRAIN} --max_steps 3"
        for rank in (0, 1)
    ]


def test_of_a_folder_only_training_stages_run_on_every_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", TINY, "--on", "zero.yaml", "--nodes", "4"]) == 0

    lines = capsys.readouterr().out.splitlines()
    found = {name: sum(f"{TINY}/{name}.yaml" in line for line in lines) for name in ("prepare", "pretrain", "dpo")}
    assert found == {"prepare": 1, "pretrain": 4, "dpo": 4}
    assert "4 machines, 4 process(es) on each" in lines[0]
    assert all("--num_machines 4 --num_processes 16" in line for line in lines if line.startswith("accelerate"))


# --- Slurm


TRAINING_SCRIPT = """\
#!/bin/bash
# pretrain on zero
#SBATCH --job-name=fledge-pretrain
#SBATCH --partition=gpu
#SBATCH --account=birds
#SBATCH --time=1-00:00:00
#SBATCH --output=runs/tiny/slurm/logs/pretrain-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --gpus-per-node=8
#SBATCH --signal=B:USR1@300
set -euo pipefail
cd {folder}
export NCCL_DEBUG=WARN
export TQDM_MININTERVAL=30
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export FIRST_HOST="${{hosts[0]}}" FIRST_PORT="$((20000 + SLURM_JOB_ID % 10000))"
export LOGS=runs/tiny/slurm/logs/pretrain-"$SLURM_JOB_ID"
mkdir -p "$LOGS"
export FLEDGE_EXIT_CODE_FILE="$LOGS/exit-code"
rm -f "$FLEDGE_EXIT_CODE_FILE"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240
asked=
trap 'echo "fledge: close to the time limit"; asked=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
srun --kill-on-bad-exit=1 --cpu-bind=none --open-mode=append --output="$LOGS/node-%n.log" bash -c \
'exec {python} -m accelerate.commands.accelerate_cli launch \\
    --config_file zero.yaml --num_machines 2 --num_processes 16 --deepspeed_multinode_launcher standard \
--num_cpu_threads_per_process 1 \\
    --machine_rank "$SLURM_NODEID" --main_process_ip "$FIRST_HOST" --main_process_port "$FIRST_PORT" \\
    --tee 3 --log_dir "$LOGS/node-$SLURM_NODEID" \\
    -m fledge pretrain recipes/tiny/pretrain.yaml --max_steps 3' &
step=$!
code=0
wait "$step" || code=$?
if [ "$code" -gt 128 ]; then code=0; wait "$step" || code=$?; fi
if [ "$code" != 0 ] && {{ [ -n "$asked" ] || [ "$(cat "$FLEDGE_EXIT_CODE_FILE" 2> /dev/null)" = 75 ]; }}; then
    echo "fledge: made room, requeued"
    scontrol requeue "$SLURM_JOB_ID" || true
fi
if [ "$(cat "$FLEDGE_EXIT_CODE_FILE" 2> /dev/null)" = 69 ]; then code=0; fi
exit "$code"
"""
PREPARE_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=fledge-prepare
#SBATCH --partition=cpu
#SBATCH --account=birds
#SBATCH --time=1-00:00:00
#SBATCH --output=runs/tiny/slurm/logs/prepare-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
set -euo pipefail
cd {folder}
exec {python} -m fledge prepare recipes/tiny/prepare.yaml
"""


def slurm(*argv: str) -> int:
    return main(["launch", *argv, "--on", "zero.yaml", "--via", "slurm"])


def script(name: str) -> list[str]:
    """The lines of a script that do something; its comments and blank lines are for reading."""
    path = Path(f"runs/tiny/slurm/{name}.sh")
    subprocess.run(["bash", "-n", str(path)], check=True)
    lines = path.read_text().splitlines()
    return [line for number, line in enumerate(lines) if line and (number < 2 or not line.startswith("# "))]


def test_the_scripts_line_by_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    options = ["--account", "birds", "--partition", "gpu", "--cpu_partition", "cpu", "--time", "1-00:00:00"]
    assert slurm(PRETRAIN, *options, "--max_steps", "3") == 0

    written = {"folder": shlex.quote(str(folder)), "python": shlex.quote(sys.executable)}
    assert script("pretrain") == TRAINING_SCRIPT.format(**written).splitlines()
    assert script("prepare") == PREPARE_SCRIPT.format(**written).splitlines()
    assert script("submit")[3:] == [
        f"cd {written['folder']}",
        "job_tokenizer=$(sbatch --parsable runs/tiny/slurm/tokenizer.sh)",
        'echo "tokenizer: job $job_tokenizer, tokenizer.sh"',
        "job_prepare=$(sbatch --parsable --kill-on-invalid-dep=yes "
        '--dependency=afterok:"${job_tokenizer%%;*}" runs/tiny/slurm/prepare.sh)',
        'echo "prepare: job $job_prepare, prepare.sh"',
        "job_pretrain=$(sbatch --parsable --kill-on-invalid-dep=yes "
        '--dependency=afterok:"${job_tokenizer%%;*}":"${job_prepare%%;*}" runs/tiny/slurm/pretrain.sh)',
        'echo "pretrain: job $job_pretrain, pretrain.sh"',
    ]
    assert capsys.readouterr().out.endswith(
        "no sbatch on this machine, so run where there is: bash runs/tiny/slurm/submit.sh\n"
    )
    assert not [path for path in folder.rglob("*.sh") if "hf_abc" in path.read_text()]


def test_without_checkpoints_a_time_limit_is_the_end() -> None:
    assert slurm(PRETRAIN, "--save_strategy", "no") == 0
    text = "\n".join(script("pretrain"))
    assert "--signal" not in text and "trap" not in text and "--requeue" in text


def test_a_stage_that_does_not_train_gets_one_gpu_of_a_gpu_layout() -> None:
    for name in ("corpus", "tokenizer", "prepare", "pretrain", "sft", "pairs", "dpo"):
        Path(f"runs/tiny/{name}").mkdir(parents=True)
        Path(f"runs/tiny/{name}/summary.json").write_text("{}")
    assert slurm(TINY) == 0
    assert "#SBATCH --gpus=1" in script("evaluate") and "#SBATCH --gpus=1" not in script("export")
    assert not Path("runs/tiny/slurm/dpo.sh").exists()


@pytest.fixture
def queue(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm where every program that a script starts is what the test writes into python.sh; its state's folder."""
    for name, value in install(folder / "bin", 7).items():
        monkeypatch.setenv(name, value)
    (folder / "python.sh").write_text('#!/bin/sh\necho "$@"\n')
    (folder / "python.sh").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python.sh"))
    return folder / "bin"


def jobs(queue: Path) -> dict[str, dict[str, Any]]:
    found = [(path.stem, json.loads(path.read_text())) for path in queue.glob("*.json")]
    return {Path(job["script"]).stem: job | {"number": number} for number, job in found}


def codes(queue: Path) -> dict[str, int | None]:
    """The exit code of every job; None of one that never started."""
    return {name: job["code"] for name, job in jobs(queue).items()}


def test_a_folder_is_queued_in_order(queue: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert slurm(TINY) == 0

    done = jobs(queue)
    number = {name: job["number"] for name, job in done.items()}
    assert len(done) == 9 and {job["code"] for job in done.values()} == {0}
    assert done["tokenizer"]["after"] is None
    assert done["prepare"]["after"] == f"afterok:{number['tokenizer']}"
    assert done["sft"]["after"] == f"afterok:{number['prepare_sft']}:{number['pretrain']}"
    assert f"dpo: job {number['dpo']};here, dpo.sh" in capfd.readouterr().out
    logs = Path(f"runs/tiny/slurm/logs/pretrain-{number['pretrain']}")
    for machine in (0, 1):
        said = (logs / f"node-{machine}.log").read_text()
        port = 20000 + int(number["pretrain"])
        assert f"--machine_rank {machine} --main_process_ip 127.0.0.1 --main_process_port {port} " in said


def test_a_failed_stage_stops_those_after_it(queue: Path, folder: Path) -> None:
    (folder / "python.sh").write_text("#!/bin/sh\nexit 3\n")
    assert slurm(PRETRAIN) == 0
    assert codes(queue) == {
        "tokenizer": 3,
        "prepare": None,
        "pretrain": None,
    }


def test_a_failed_machine_fails_its_job(queue: Path, folder: Path) -> None:
    (folder / "python.sh").write_text('#!/bin/sh\nexit "${SLURM_NODEID:-0}"\n')
    assert slurm(PRETRAIN) == 0
    assert codes(queue) == {"tokenizer": 0, "prepare": 0, "pretrain": 1}


def test_names_are_not_shell(queue: Path, folder: Path) -> None:
    hostile = "runs/$(touch hacked) `touch hacked`; touch hacked 'x'"
    assert slurm(PRETRAIN, "--output_dir", f"{hostile}/pretrain") == 0
    job = jobs(queue)["pretrain"]
    assert job["code"] == 0 and not (folder / "hacked").exists()
    [log] = (folder / hostile).glob("slurm/logs/pretrain-*/node-0.log")
    assert log.read_text().endswith(f"--output_dir {hostile}/pretrain\n")


@pytest.mark.parametrize(
    ("told", "ends", "requeued", "code"),
    [
        ("warned", "echo 75 > $FLEDGE_EXIT_CODE_FILE; exit 1", True, 1),  # accelerate makes 1 of every code
        ("warned", "exit 1", True, 1),  # the save took too long
        ("warned", "exit 0", False, 0),  # training had just ended
        ("preempted", "echo 75 > $FLEDGE_EXIT_CODE_FILE; exit 1", True, 1),
        ("preempted", "exit 1", False, 1),  # it failed by itself
        ("preempted", "echo 69 > $FLEDGE_EXIT_CODE_FILE; exit 1", False, 0),  # trained, and not pushed
    ],
)
def test_a_job_that_made_room_goes_back_into_the_queue(
    queue: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, told: str, ends: str, requeued: bool, code: int
) -> None:
    started = folder / "started"
    (folder / "python.sh").write_text(
        f"#!/bin/bash\ntrap '{ends}' TERM\ntouch {started}\nwhile :; do sleep 0.05; done\n"
    )
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/usr/bin:/bin")
        assert slurm(PRETRAIN) == 0  # written, not queued
    slurms = {"SLURM_JOB_ID": "42", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "127.0.0.1"}
    with subprocess.Popen(["bash", "runs/tiny/slurm/pretrain.sh"], env={**os.environ, **slurms}) as job:
        wait_for(started)
        wait_for(queue / "tasks")
        if told == "warned":
            job.send_signal(signal.SIGUSR1)
        else:
            os.kill(int((queue / "tasks").read_text()), signal.SIGTERM)
        assert job.wait(20) == code
    assert (queue / "requeued").exists() == requeued


def wait_for(path: Path) -> None:
    until = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < until, f"no {path}"
        time.sleep(0.02)


# --- Ray


@pytest.mark.parametrize(
    ("resources", "machines", "found"),
    [({"CPU": 64.0}, 2, "0 on 2"), ({"GPU": 8.0}, 2, "8 on 2"), ({"GPU": 16.0}, 1, "16 on 1")],
)
def test_a_cluster_that_is_too_small_is_refused(resources: dict[str, float], machines: int, found: str) -> None:
    layout = read_layout(Path("zero.yaml"))
    with pytest.raises(
        ValueError, match=rf"zero takes 16 GPU\(s\) on 2 machine\(s\), and the Ray cluster has {found};"
    ):
        check_room(layout, resources, machines)
    check_room(layout, {"GPU": 16.0}, 2)


def test_a_missing_ray_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["launch", PRETRAIN, "--on", "cpu", "--via", "ray"]) == 2
    assert capsys.readouterr().err == "fledge: --via ray: ray is not installed; run: pip install 'fledge-lm[scale]'\n"


def test_ray_workers_are_told_of_the_layout_what_accelerate_tells_its_own() -> None:
    told = environment(read_layout(Path("sharded.yaml")))
    assert told["ACCELERATE_USE_FSDP"] == "true" and told["FSDP_VERSION"] == "2"
    assert told["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT" and told["ACCELERATE_MIXED_PRECISION"] == "no"
    assert told["OMP_NUM_THREADS"] == "1" and "RANK" not in told and "PATH" not in told
