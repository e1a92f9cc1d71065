"""Bytes per GPU, by part, at the moments of a step when most is held.

What each engine keeps follows the libraries as fledge sets them up (fledge.training): DDP and ZeRO hold float32
weights and multiply under autocast; FSDP2 gathers bfloat16 copies of float32 shards and reduces in float32. States
follow ZeRO (Rajbhandari et al. 2020), section 3. Not counted: the CUDA context, NCCL, the allocator's gaps.
"""

from dataclasses import dataclass
from typing import Any

from fledge.layouts import Layout

from .activations import Batch, Precision, layer_bytes, shared_bytes, stream_bytes
from .job import Job


PARTS = ("weights", "gradients", "optimizer", "reference", "activations", "logits_and_loss", "communication")
"""Of a moment; their sum is what is held then."""

REDUCE_BUCKET = 500_000_000
LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's defaults, in elements: gradients reduced at once, and parameters that ZeRO-3 keeps gathered."""

HEAD_TOKENS, HEAD_COLUMNS = 4096, 32768
"""A tile of TRL's fused head: tokens by vocabulary."""

CPU_TILE = 1024
"""Tokens in a tile of fledge's own fused head on a CPU."""


@dataclass(frozen=True)
class Place:
    """What of a layout decides memory."""

    engine: str
    processes: int
    shards: int
    on_gpu: bool = True
    offload_optimizer: bool = False
    offload_weights: bool = False
    reshard: bool = True

    @classmethod
    def of(cls, layout: Layout) -> "Place":
        """The place that a layout describes."""
        zero, fsdp = layout.settings.get("deepspeed_config", {}), layout.settings.get("fsdp_config", {})
        shards = layout.settings.get("parallelism_config", {}).get("parallelism_config_dp_shard_size")
        return cls(
            layout.engine,
            layout.num_processes,
            (shards or layout.num_processes) if layout.engine not in ("single", "ddp") else 1,
            not layout.use_cpu,
            zero.get("offload_optimizer_device", "none") != "none" or bool(fsdp.get("fsdp_offload_params")),
            zero.get("offload_param_device", "none") != "none" or bool(fsdp.get("fsdp_offload_params")),
            fsdp.get("fsdp_reshard_after_forward", True),
        )

    @property
    def is_fsdp(self) -> bool:
        """Weights, gradients and optimizer in shards; every layer gathered as it is used."""
        return self.engine in ("fsdp2", "hsdp")


def states(parameters: int, trainable: int, engine: str, shards: int, weight_bytes: int = 4) -> dict[str, float]:
    """Weights, gradients and AdamW's two moments on one of `shards` GPUs, nothing gathered.

    Args:
        weight_bytes: of a weight and of its gradient; 4 as fledge trains. With 2, ZeRO keeps float32 masters beside
            bfloat16 weights, as in its paper.
    """
    weights, gradients = weight_bytes * parameters, weight_bytes * trainable
    moments = 8 * trainable
    if engine.startswith("zero"):
        moments += 4 * trainable  # ZeRO's own float32 copy of its partition
    whole = {
        "single": (1, 1, 1),
        "ddp": (1, 1, 1),
        "zero1": (1, 1, shards),
        "zero2": (1, shards, shards),
    }.get(engine, (shards, shards, shards))
    return {
        "weights": weights / whole[0],
        "gradients": gradients / whole[1],
        "optimizer": moments / whole[2],
    }


def peak(job: Job, place: Place, micro_batch: int, accumulation: int, checkpointing: bool) -> dict[str, Any]:
    """Bytes by part at the fullest moment of a step, their sum as `peak`, and the moment's name."""
    found = moments(job, place, micro_batch, accumulation, checkpointing)
    name = max(found, key=lambda moment: sum(found[moment].values()))
    return {"peak": sum(found[name].values()), "moment": name, **{part: found[name].get(part, 0) for part in PARTS}}


def moments(
    job: Job, place: Place, micro_batch: int, accumulation: int, checkpointing: bool
) -> dict[str, dict[str, float]]:
    """Bytes by part when the loss is differentiated, when the layers are, and when the optimizer steps."""
    shape = job.shape
    precision: Precision = "float32" if not job.bf16 else "bfloat16" if place.is_fsdp else "autocast"
    compute = 4 if precision == "float32" else 2
    batch = Batch(micro_batch * job.sides, job.length)
    attention = job.attention(place.on_gpu)

    held = states(job.total, job.trainable, place.engine, place.shards)
    gradients = held["gradients"]
    if place.is_fsdp and accumulation > 1 and not _syncs_each(job):
        gradients = 4 * job.trainable  # the Trainer reduces once a step: until then every GPU has them whole
    held["optimizer"] = 0 if place.offload_optimizer else held["optimizer"] * _optimizer_share(job)
    held["weights"] = 0 if place.offload_weights else held["weights"]
    held["reference"] = _reference(job, place, compute)
    earlier = gradients if accumulation > 1 else 0  # of the step's earlier micro-batches

    layer = layer_bytes(shape, batch, precision, attention, place.on_gpu)
    stream = stream_bytes(shape, batch, precision)
    shared = shared_bytes(shape, batch, precision, attention) + stream
    # Autocast's bfloat16 copies of the weights: the backward pass needs them, or with checkpointing one layer's.
    copies = compute * shape.layer_matrices if precision == "autocast" else 0
    kept = shape.num_layers * (stream if checkpointing else layer + copies)
    inside = layer + copies if checkpointing else 0
    passing = 2 * stream + compute * batch.tokens * shape.intermediate_size
    saved, forward, backward = _head(job, batch, precision, place)
    communication = _communication(job, place, compute)

    at_loss = {**held, "gradients": earlier, "activations": shared + kept, "communication": communication["head"]}
    if checkpointing and copies:
        # Autocast remembers every copy until the forward pass ends, and the head is part of it.
        forward += shape.num_layers * copies
    at_loss["logits_and_loss"] = saved + max(forward, backward)
    head_gradient = 0 if accumulation > 1 else 4 * shape.table / (place.shards if place.is_fsdp else 1)
    in_layers = {
        **held,
        "gradients": earlier + head_gradient,
        "activations": shared + kept + inside + passing,
        "communication": communication["layer"],
    }
    # Those of the first layer and of the embedding come last of all.
    unborn = (shape.layer + (0 if shape.tied else shape.table)) / shape.total if accumulation == 1 else 0
    last_layer = {
        **held,
        "gradients": gradients * (1 - unborn),
        "activations": shared + layer + copies + passing,
        "communication": communication["layer"],
    }
    step = {**held, "gradients": gradients, "optimizer": held["optimizer"] + _step(job, place), "communication": 0.0}
    step["communication"] = communication["always"]
    return {"loss": at_loss, "backward": in_layers, "end of backward": last_layer, "optimizer step": step}


def full_logits(job: Job, micro_batch: int) -> float:
    """What logits and loss would take without the fused head: logits, float32 copy, log-softmax, its gradient."""
    tokens = micro_batch * job.sides * job.length
    return tokens * job.shape.vocab_size * ((2 if job.bf16 else 4) + 12 + (4 if job.shape.z_loss else 0))


def _head(job: Job, batch: Batch, precision: Precision, place: Place) -> tuple[float, float, float]:
    """Of the head and the loss: what is kept between its passes, and what its forward and backward pass take beside.

    TRL's ChunkedLogProbFunction on a GPU, fledge.training.cpu_head on a CPU, full logits with z_loss.
    """
    shape, tokens = job.shape, batch.tokens
    compute = 4 if precision == "float32" else 2
    stream = 2 if precision == "bfloat16" else 4
    if shape.z_loss:
        return full_logits(job, batch.sequences // job.sides), 0, 4 * shape.table
    gradients = (0 if job.adapters else 4 * shape.table) + stream * tokens * shape.hidden_size
    if not place.on_gpu:
        saved = compute * (tokens * shape.hidden_size + (shape.table if precision == "autocast" else 0))
        tile = CPU_TILE * shape.vocab_size * (compute + 12)
        return saved, tile, tile + gradients + compute * (tokens * shape.hidden_size + shape.table)
    saved = stream * tokens * shape.hidden_size
    tile = compute * (min(tokens, HEAD_TOKENS) * HEAD_COLUMNS)
    if precision == "autocast":
        tile += compute * min(shape.vocab_size, HEAD_COLUMNS) * shape.hidden_size
    gradient_copy = 2 * shape.table if precision == "bfloat16" else 0
    return saved, tile, tile + gradients + gradient_copy + 4 * tokens * shape.hidden_size


def _communication(job: Job, place: Place, compute: int) -> dict[str, float]:
    """Buffers and gathered weights: always, while the head is differentiated, while a layer is."""
    shape = job.shape
    if place.engine == "single":
        return dict.fromkeys(("always", "head", "layer"), 0.0)
    if place.engine == "ddp":
        return dict.fromkeys(("always", "head", "layer"), 4.0 * job.trainable)  # one bucket view of every gradient
    if place.engine in ("zero1", "zero2"):
        return dict.fromkeys(("always", "head", "layer"), 4.0 * REDUCE_BUCKET)
    if place.engine == "zero3":
        gathered = 4.0 * min(job.total, LIVE_PARAMETERS)
        return {"always": 4.0 * REDUCE_BUCKET} | dict.fromkeys(("head", "layer"), 4.0 * REDUCE_BUCKET + gathered)
    # FSDP2: the last norm and the head stay gathered until their gradient is there; so do all layers if not resharded.
    layers = 0 if place.reshard else compute * shape.num_layers * shape.layer
    tail = compute * shape.table
    gathered = 2 * compute * shape.layer  # of the layer at hand and, on its way, of the next one
    reduced = (compute + 4) * shape.layer  # its gradient, and the float32 buffer it is reduced in
    return {"always": 0.0, "head": float(layers + tail + gathered), "layer": float(layers + gathered + reduced)}


def _reference(job: Job, place: Place, compute: int) -> float:
    """The frozen model of DPO, as TRL loads it: float32, sharded where the engine shards weights."""
    if not job.has_reference:
        return 0
    sharded = place.is_fsdp or place.engine == "zero3"
    return 4 * job.shape.total / (place.shards if sharded else 1)


def _optimizer_share(job: Job) -> float:
    """Of AdamW's two moments: Muon keeps one for the layers' matrices."""
    if job.recipe.values.get("muon_learning_rate") is None:
        return 1
    hidden = job.shape.num_layers * job.shape.layer_matrices
    return 1 - hidden / 2 / job.trainable


def _step(job: Job, place: Place) -> float:
    """What the optimizer takes while it steps: nothing where it is fused."""
    if place.offload_optimizer:
        return 0
    if place.engine.startswith("zero"):
        return 4 * job.trainable / place.shards  # the gradients of its partition, flattened
    if job.recipe.values.get("muon_learning_rate") is not None:
        matrices = job.shape.num_layers * job.shape.layer_matrices
        return 10 * matrices  # updates, and the bfloat16 stacks of Newton-Schulz
    return 0 if job.get("optim") == "adamw_torch_fused" else 4 * job.trainable / place.shards


def _syncs_each(job: Job) -> bool:
    """Whether gradients are reduced after every micro-batch (accelerator_config)."""
    kwargs = (job.recipe.values.get("accelerator_config") or {}).get("gradient_accumulation_kwargs") or {}
    return bool(kwargs.get("sync_each_batch"))
