"""Keys a recipe may not state although people write them: what each is called today, or why it has no place here."""

_SECRET = "a token never stands in a recipe; log in with `hf auth login` or set HF_TOKEN in the environment"
_LAYOUT = "placement belongs in the layout (fledge run --on, accelerate launch --config_file), not in a recipe"
_CODE = "code out of a model folder is never run; leave it out"
_TOKENIZER = "comes from the tokenizer; leave it out"
_DTYPE = "weights are kept in float32 and `bf16: true` of the recipe trains in bfloat16; leave it out"
_DERIVED = "follows from tokens_per_step or pairs_per_step and the layout, so that hardware does not change the run"

SECRETS = frozenset({"hub_token", "push_to_hub_token", "hf_token", "use_auth_token", "token"})
"""Keys whose value is a token wherever they stand."""

ANYWHERE: dict[str, str] = {**dict.fromkeys(SECRETS, _SECRET), "trust_remote_code": _CODE}
"""Keys refused at any depth, free mappings included."""

REFUSED: dict[str, str] = {
    **ANYWHERE,
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "parallelism_config"), _LAYOUT),
    **dict.fromkeys(("use_cpu", "ddp_backend", "local_rank"), _LAYOUT),
    "env": "a recipe does not set environment variables; set them in the shell or in the job script",
    "gradient_accumulation_steps": _DERIVED,
    "resume_from_checkpoint": "a stage resumes by itself from its newest whole checkpoint; leave it out",
    **dict.fromkeys((f"model_config.{name}_token_id" for name in ("pad", "bos", "eos")), _TOKENIZER),
    "model_config.dtype": _DTYPE,
}
"""Keys the libraries know and a recipe may not state, each with the reason; nested ones are written with a dot."""

_GONE = "retired, and nothing replaces it; leave it out"

RETIRED: dict[str, str] = {
    "adafactor": "retired; write `optim: adafactor`",
    "dataset_batch_size": _GONE,
    "dataset_mixer": "retired; write `datasets:` in prepare.yaml, each entry with its `path` and `weight`",
    "dataset_splits": "retired; write `split` in the entries of `datasets:` and `eval_datasets:` in prepare.yaml",
    "dispatch_batches": "moved; write `accelerator_config: {dispatch_batches: ...}`",
    "evaluation_strategy": "renamed to eval_strategy; the values are the same",
    "fp16_backend": _GONE,
    "fp16_opt_level": _GONE,
    "fsdp_min_num_params": _LAYOUT,
    "fsdp_transformer_layer_cls_to_wrap": _LAYOUT,
    "generate_during_eval": "retired; the evaluate stage generates answers",
    "group_by_length": "retired; write `train_sampling_strategy: group_by_length`",
    "half_precision_backend": _GONE,
    "include_inputs_for_metrics": "retired; write `include_for_metrics: [inputs]`",
    "include_tokens_per_second": "retired; fledge logs the throughput of every run",
    "jit_mode_eval": "retired; write `torch_compile: true`",
    "logging_dir": "retired; set TENSORBOARD_LOGGING_DIR in the environment, or leave it out",
    "max_completion_length": "retired; max_length bounds prompt and completion together",
    "max_prompt_length": "retired; max_length bounds prompt and completion together",
    "max_seq_length": "renamed to max_length, which prepare.yaml fixes for pretrain and sft",
    "model_config.torch_dtype": _DTYPE,
    "mp_parameters": _LAYOUT,
    "no_cuda": "retired; train on CPUs with `--config_file accelerate_configs/cpu.yaml`",
    "num_of_sequences": _GONE,
    "overwrite_output_dir": "retired; a stage resumes what is in output_dir, so delete the folder to start over",
    "past_index": _GONE,
    "per_gpu_eval_batch_size": "renamed to per_device_eval_batch_size; the value is the same",
    "per_gpu_train_batch_size": "renamed to per_device_train_batch_size; the value is the same",
    "push_to_hub_model_id": "renamed to hub_model_id; write owner/name",
    "push_to_hub_organization": "retired; write `hub_model_id: owner/name`",
    "ray_scope": _GONE,
    "rpo_alpha": "retired; write `loss_type: [sigmoid, sft]` with `loss_weights: [1.0, alpha]`",
    "save_safetensors": "retired; weights are always saved as safetensors",
    "sharded_ddp": _LAYOUT,
    "split_batches": "moved; write `accelerator_config: {split_batches: ...}`",
    "tokenizer": "no key of this stage; the tokenizer lies in the folder model_name_or_path",
    "torch_dtype": "renamed to dtype by transformers; here `bf16: true` trains in bfloat16",
    "torchdynamo": "retired; write `torch_compile_backend: ...`",
    "tpu_num_cores": _LAYOUT,
    "use_flash_attention_2": "retired; fledge chooses the fastest attention that keeps documents apart, leave it out",
    "use_ipex": _GONE,
    "use_liger": "renamed to use_liger_kernel; the value is the same",
    "use_mps_device": _LAYOUT,
    "warmup_ratio": "retired; write it as `warmup_steps`, where a value below 1 is the ratio",
    "xpu_backend": _LAYOUT,
}
"""Names of older libraries and guides, with what to write today; consulted only where a stage has no such key."""
