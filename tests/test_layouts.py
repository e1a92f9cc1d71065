"""Layouts: the shipped ones as Accelerate reads them, mistakes by line, one batch on all, whose checkpoints fit."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from fledge.layouts import FAMILIES, REFUSED, SCHEMA, find_layout, launched_engine, read_layout
from fledge.training.arguments import accumulation
from fledge.training.checkpoints import refuse_other_layout


ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
ENGINES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
NAMES = {"cpu", "cpu_2proc", "1xh100", "16xh100_hsdp"} | {f"{n}xh100_{engine}" for n in (8, 16) for engine in ENGINES}


def test_every_layout_is_there() -> None:
    assert {path.stem for path in SHIPPED} == NAMES


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_layouts_mean_to_accelerate_what_they_mean_to_us(path: Path) -> None:
    layout = read_layout(path)
    number, _, engine = path.stem.partition("xh100")
    processes = int(number) if engine or number.isdigit() else {"cpu": 1, "cpu_2proc": 2}[path.stem]
    assert (layout.num_processes, layout.num_machines) == (processes, 2 if processes == 16 else 1)
    assert layout.engine == (engine.strip("_") or ("single" if processes == 1 else "ddp"))
    assert layout.use_cpu == path.stem.startswith("cpu") and layout.mixed_precision == "no"

    assert load_config_from_file(str(path)).num_processes == processes
    # What accelerate launch makes of it: where the nested keys end up is where its engines look.
    parser = launch_command_parser()
    args, *_ = _validate_launch_command(parser.parse_args(["--config_file", str(path), "script.py"]))
    family = FAMILIES[layout.engine]
    assert (bool(args.use_deepspeed), bool(args.use_fsdp)) == (family == "zero", family == "fsdp")
    if family == "zero":
        assert args.zero_stage == int(layout.engine[-1])
        assert args.gradient_clipping is None and args.gradient_accumulation_steps is None  # the recipe's
        assert processes == 8 or args.deepspeed_multinode_launcher == "standard"
    if family == "fsdp":
        assert (args.fsdp_version, args.fsdp_state_dict_type) == (2, "FULL_STATE_DICT")
        assert args.fsdp_transformer_layer_cls_to_wrap is None  # the model's own, of any architecture
    if layout.engine == "hsdp":
        sizes = args.parallelism_config_dp_replicate_size, args.parallelism_config_dp_shard_size
        assert args.use_parallelism_config and sizes == (2, 8)


def test_every_nested_key_is_an_argument_of_accelerate_launch() -> None:
    known = vars(launch_command_parser().parse_args(["script.py"]))
    for name in ("fsdp_config", "deepspeed_config", "parallelism_config"):
        for key in SCHEMA["properties"][name]["properties"]:
            assert key in known, f"{name}.{key}"
    for path in REFUSED:
        assert len(path) == 1 or path[1] in known


ZERO = "distributed_type: DEEPSPEED\nnum_processes: 8\ndeepspeed_config:\n  "
FSDP = (
    "distributed_type: FSDP\nnum_processes: 8\nfsdp_config:\n  fsdp_version: 2\n"
    "  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n  fsdp_state_dict_type: FULL_STATE_DICT\n"
)
WRONG = [
    ("num_proceses: 8\ndistributed_type: MULTI_GPU\n", 1, "num_proceses: unknown key; did you mean num_processes?"),
    ("distributed_type: NO\nnum_processes: 1\n", 1, 'YAML reads a plain no or off as false; write "NO" in quotes'),
    ("distributed_type: MULTI_CPU\nnum_processes: 2\n", 1, "MULTI_CPU: accelerate would run one process; write MULTI"),
    ("distributed_type: MULTI_GPU\nnum_processes: two\n", 2, 'num_processes: expected an integer, not "two"'),
    ("distributed_type: 'NO'\nnum_processes: 2\n", 2, "num_processes: distributed_type 'NO' runs one process"),
    ("distributed_type: MULTI_GPU\nnum_processes: 9\nnum_machines: 2\n", 2, "9 is no multiple of the 2 machines"),
    ("distributed_type: MULTI_GPU\nnum_processes: 8\nmachine_rank: 1\n", 3, "machine_rank: counts from 0"),
    ("distributed_type: MULTI_GPU\nnum_processes: 8\nmixed_precision: bf16\n", 3, "bf16 is the recipe's word"),
    ("distributed_type: MULTI_GPU\nnum_processes: 8\nmixed_precision: bf17\n", 3, "did you mean bf16?"),
    ("distributed_type: MULTI_GPU\nnum_processes: 8\nlearning_rate: 0.1\n", 3, "learning_rate: no key of this stage"),
    ("distributed_type: MULTI_GPU\nnum_processes: 8\nfp8_config: {}\n", 3, "fp8_config: precision is the recipe's"),
    ("distributed_type: FSDP\nnum_processes: 8\n", 1, "distributed_type: FSDP needs fsdp_config"),
    (FSDP.replace("FSDP\n", "MULTI_GPU\n"), 3, "fsdp_config: has no effect with distributed_type MULTI_GPU"),
    (FSDP + "  fsdp_reshard_after_foward: true\n", 7, "did you mean fsdp_reshard_after_forward?"),
    (FSDP + "  fsdp_activation_checkpointing: true\n", 7, "activation_checkpointing is the recipe's word"),
    (FSDP.replace("FULL", "SHARDED"), 6, "SHARDED_STATE_DICT: checkpoints would hold no model that loads"),
    (FSDP.replace(": 2", ": 1"), 4, "fsdp_version: 1: FSDP1"),
    (
        FSDP
        + "parallelism_config:\n  parallelism_config_dp_replicate_size: 2\n  parallelism_config_dp_shard_size: 8\n",
        9,
        "2 replicas x 8 shards are not the 8 processes",
    ),
    (ZERO + "zero_stge: 1\n", 4, "zero_stge: unknown key; did you mean zero_stage?"),
    (ZERO + "zero_stage: 4\n", 4, "zero_stage: 4 is not one of 1, 2, 3"),
    (ZERO + "zero_stage: 1\n  gradient_clipping: 1.0\n", 5, "gradient_clipping: max_grad_norm is the recipe's word"),
    (
        ZERO + "zero_stage: 3\n  zero3_save_16bit_model: true\n  zero3_init_flag: true\n",
        6,
        "a model built in shards begins with other random weights",
    ),
    (ZERO + "zero_stage: 3\n", 3, "zero3_save_16bit_model: write true"),
    (ZERO + "zero_stage: 2\n  offload_param_device: cpu\n", 5, "weights are offloaded by zero_stage 3 only"),
    ("num_machines: 2\n" + ZERO + "zero_stage: 2\n", 4, "deepspeed_multinode_launcher: missing; write standard"),
    ("- 8\n", 1, "the top level has to be a mapping"),
]


@pytest.mark.parametrize(("text", "line", "message"), WRONG, ids=[message[:40] for *_, message in WRONG])
def test_a_wrong_layout_is_one_message_with_its_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = tmp_path / "layout.yaml"
    path.write_text(text)

    with pytest.raises(ValueError) as raised:
        read_layout(path)

    (told,) = [told for told in str(raised.value).splitlines() if "missing; one of" not in told]
    assert told.startswith(f"{path}:{line}: ") and message in told


def test_layouts_are_found_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n")
    monkeypatch.chdir(tmp_path)  # away from the checkout, whose folder is found all the same
    assert find_layout(own) == own
    assert find_layout("8xh100_ddp") == find_layout("8xh100_ddp.yaml") == ROOT / "accelerate_configs/8xh100_ddp.yaml"
    with pytest.raises(ValueError, match="--on: no such layout: 8xh100_dpd; did you mean 8xh100_ddp"):
        find_layout("8xh100_dpd")
    with pytest.raises(ValueError, match=r"no such layout: /nowhere/x\.yaml; known are 16xh100_ddp, "):
        find_layout("/nowhere/x.yaml")


@pytest.mark.parametrize("tokens", [524_288, 2_097_152])
def test_a_step_is_the_same_on_every_layout(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    for path in SHIPPED:
        processes = read_layout(path).num_processes
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        assert accumulation(tokens, 2048, 4, "tokens") * 2048 * 4 * processes == tokens


LAUNCHES: list[tuple[str, dict[str, str]]] = [
    ("single", {}),
    ("ddp", {"WORLD_SIZE": "2"}),
    ("fsdp2", {"WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "true"}),
    ("zero2", {"WORLD_SIZE": "8", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}),
]


@pytest.mark.parametrize(("engine", "environment"), LAUNCHES)
def test_a_process_knows_its_engine(monkeypatch: pytest.MonkeyPatch, engine: str, environment: dict[str, str]) -> None:
    pretend(monkeypatch, **environment)
    assert launched_engine() == engine


def pretend(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    """Stand in a process of such a launch."""
    for name in ("WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_PARALLELISM_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


RESUMED = [
    ("single", 1, "ddp 2", None),
    ("ddp", 8, "ddp 2", None),
    ("hsdp", 16, "fsdp2 8", None),
    ("zero2", 8, "zero2 8", None),
    ("zero2", 4, "zero2 8", "continue on a zero2 layout of 4 process(es)"),
    ("zero1", 8, "zero2 8", "continue on a zero1 layout of 8 process(es)"),
    ("zero2", 2, "ddp 2", "continue on a zero2 layout of 2 process(es)"),
    ("ddp", 2, "zero2 8", "continue on a layout of single or ddp, of any number of processes"),
    ("fsdp2", 2, "ddp 2", "continue on a layout of fsdp2 or hsdp, of any number of processes"),
]


@pytest.mark.parametrize(("wrote", "processes", "now", "way_out"), RESUMED)
def test_checkpoints_of_another_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrote: str, processes: int, now: str, way_out: str | None
) -> None:
    checkpoint = tmp_path / "checkpoint-4"
    checkpoint.mkdir()
    made = {"topology": {"engine": wrote, "processes": processes}}
    (checkpoint / "COMPLETE.json").write_text(json.dumps(made))
    engine, world = now.split()
    pretend(monkeypatch, **dict(LAUNCHES)[engine] | {"WORLD_SIZE": world})

    if way_out is None:
        refuse_other_layout(tmp_path)
    else:
        with pytest.raises(ValueError, match=re.escape(way_out)) as raised:
            refuse_other_layout(tmp_path)
        assert f"model_name_or_path: {checkpoint}" in str(raised.value)  # the other way out: the weights alone

    (checkpoint / "COMPLETE.json").write_text('{"topology": {"eng')  # damaged: nothing would be read of it
    refuse_other_layout(tmp_path)
    (checkpoint / "COMPLETE.json").unlink()  # not whole
    refuse_other_layout(tmp_path)


def test_the_layouts_differ_in_placement_alone() -> None:
    stated: dict[str, Any] = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in SHIPPED}
    for engine in ENGINES:
        small, large = dict(stated[f"8xh100_{engine}"]), dict(stated[f"16xh100_{engine}"])
        large["deepspeed_config"] = dict(large.get("deepspeed_config", {}))
        large["deepspeed_config"].pop("deepspeed_multinode_launcher", None)
        assert large == {"deepspeed_config": {}} | small | {"num_machines": 2, "num_processes": 16}
