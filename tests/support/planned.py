"""What a compiler found of a step, as a plan holds it."""

from dinojax.plan.targets import GIB

FOUND = {
    "target": "v5p:2x2x2",
    "stage": "pretrain",
    "crops": {"global": 256, "local": 112, "gram": None, "box": 512, "share": 0.7, "sizes": 2}
    | {"reduction": 1},
    "strategy": "fsdp",
    "mesh": {"replica": 1, "fsdp": 8, "tensor": 1},
    "devices": 8,
    "batch_size": 64,
    "flops": 8 * 459e12,
    "state": {"student": GIB, "ema": GIB, "gram": 0, "optimizer": 2 * GIB, "centers": 0},
    "batch_bytes": 100,
    "closed_form": {"all-gather": 1e9, "reduce-scatter": 0.5e9, "all-reduce": 0.0},
    "reduce": {"chosen": "float32", "bytes": {"float32": 20e9, "bfloat16": 10e9}},
    "blocks": {"dino": {"logits": 1000, "sinkhorn": 500}, "ibot": {"logits": 10, "sinkhorn": 900}},
    "memory": {"peak": 9 * GIB, "argument": 4 * GIB, "temp": 5 * GIB},
    "processor_seconds": 33.4,
    "fits": True,
    "collectives": [
        {"kind": "all-gather", "group": 8, "near": True, "overlapped": True, "count": 3}
        | {"wire": 600e9 * 1.9},
        {"kind": "all-reduce", "group": 2, "near": True, "overlapped": False, "count": 1}
        | {"wire": 600e9 / 3},
    ],
}
