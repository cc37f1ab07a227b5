"""Which key is meant by a name that is none: by what the field calls things, and by letters."""

import difflib
from collections.abc import Sequence

# What the field calls some keys -> ours; a likeness of letters would lead elsewhere.
USUAL = {
    **dict.fromkeys(("lr", "learning_rate", "max_lr", "peak_lr", "base_lr"), "schedules.lr.peak"),
    **dict.fromkeys(("min_lr", "final_lr", "end_lr"), "schedules.lr.end"),
    **dict.fromkeys(("warmup", "warmup_steps", "warmup_epochs"), "schedules.lr.warmup"),
    **dict.fromkeys(("wd", "weight_decay"), "schedules.weight_decay.peak"),
    **dict.fromkeys(("momentum", "ema", "ema_decay", "ema_momentum"), "schedules.momentum.peak"),
    **dict.fromkeys(("temp", "teacher_temp"), "schedules.teacher_temperature.peak"),
    "student_temp": "losses.student_temperature",
    **dict.fromkeys(("num_epochs", "max_epochs", "n_epochs"), "epochs"),
    **dict.fromkeys(("steps", "max_steps", "iterations", "num_iterations", "iters"), "num_steps"),
    **dict.fromkeys(("batch", "bs", "batchsize", "global_batch_size"), "batch_size"),
    **dict.fromkeys(("batch_size_per_gpu", "per_device_batch_size"), "group_size"),
    **dict.fromkeys(("grad_accum", "accum", "gradient_accumulation_steps"), "accumulate"),
    "accumulation_steps": "accumulate",
    **dict.fromkeys(("clip_grad", "grad_clip", "max_grad_norm", "gradient_clip"), "optim.clip"),
    **dict.fromkeys(("betas", "beta"), "optim.beta1"),
    **dict.fromkeys(("layerwise_decay", "llrd"), "optim.layer_decay"),
    **dict.fromkeys(
        ("img_size", "image_size", "input_size", "resolution", "size"), "crops.global_size"
    ),
    **dict.fromkeys(("crop_size", "global_crops_size"), "crops.global_size"),
    "local_crops_size": "crops.local_size",
    **dict.fromkeys(("local_crops_number", "n_local", "num_crops"), "crops.num_local"),
    **dict.fromkeys(("in_chans", "channels", "num_channels", "in_channels"), "image.channels"),
    **dict.fromkeys(("arch", "architecture", "backbone", "model_name"), "model.name"),
    **dict.fromkeys(("embed_dim", "hidden_size", "dim"), "model.width"),
    **dict.fromkeys(("num_layers", "layers", "num_blocks"), "model.depth"),
    **dict.fromkeys(("heads", "n_heads"), "model.num_heads"),
    **dict.fromkeys(
        ("num_register_tokens", "n_storage_tokens", "registers"), "model.num_registers"
    ),
    **dict.fromkeys(("mlp_ratio",), "model.ffn_ratio"),
    **dict.fromkeys(("drop_path_rate", "dropout", "droppath"), "model.drop_path"),
    **dict.fromkeys(("checkpointing", "grad_checkpointing"), "model.remat"),
    **dict.fromkeys(("n_prototypes", "out_dim", "prototypes"), "dino_head.prototypes"),
    **dict.fromkeys(("dataset", "data", "data_dir", "data_path", "dataset_path"), "data.path"),
    **dict.fromkeys(("workers", "n_workers"), "data.num_workers"),
    **dict.fromkeys(("devices", "gpus", "num_gpus", "n_gpus"), "mesh.devices"),
    **dict.fromkeys(("fp16", "bf16", "amp", "dtype", "mixed_precision"), "precision.compute"),
    **dict.fromkeys(("pretrained", "pretrained_weights", "init_from", "resume"), "start.source"),
    **dict.fromkeys(("save_every", "save_freq", "saveckp_freq"), "checkpoint.every"),
    **dict.fromkeys(("log_every", "log_freq", "print_freq"), "log.every"),
}
ALIKE = 0.7  # share of letters below which one name says nothing of another


def nearest(key: str, known: Sequence[str]) -> str | None:
    """The key of the same last name, by what the field says, or by letters; None without one."""
    section, _, leaf = key.lower().rpartition(".")
    usual = USUAL.get(leaf, "")
    if usual in known and (not section or usual.startswith(f"{section}.")):
        return usual
    if same := [other for other in known if other.rpartition(".")[2] == leaf]:
        return min(same, key=lambda other: other.count("."))
    if usual in known:
        return usual

    def likeness(other: str) -> tuple[float, float]:
        parts = other.split(".")
        spans = [(i, j) for j in range(1, len(parts) + 1) for i in range(j)]
        ratios = [_likeness(key, ".".join(parts[i:j])) for i, j in spans]
        return max(ratios), ratios[-len(parts)]  # a part, such as `lr`; then the whole name

    best = max(known, key=likeness, default=None)
    return best if best is not None and max(likeness(best)) >= ALIKE else None


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
