"""A plan of a text stage: its memory, its FLOPs, and what it sends."""

import pytest

from dinojax import config as configs
from dinojax.config import ConfigError
from dinojax.plan import compile, report, shards, step_model, text_step
from dinojax.sharding import mesh

SMALL = [
    *("batch_size=32", "group_size=2", "crops.global_size=32", "data.box_size=48"),
    *("model.width=32", "model.depth=2", "model.num_heads=2", "text.vocabulary=tiles"),
    *("text.context=24", "text.width=32", "text.depth=2", "text.num_heads=2"),
    *("data.source=tiles", "mesh.strategy=fsdp"),
]


@pytest.fixture(scope="module")
def plan():
    return compile.plan(recipe="dinotxt_vitl16", target="cpu:8", overrides=SMALL)


@pytest.mark.slow
def test_a_plan_of_a_text_stage_counts_state_memory_flops_and_bytes(plan):
    assert plan["state"]["optimizer"] == 2 * plan["state"]["student"] + 4, "moments and a count"
    state = sum(plan["state"].values()) + plan["batch_bytes"]
    assert state <= plan["memory"]["argument"] < 1.05 * state + 4096
    assert plan["memory"]["peak"] > plan["memory"]["argument"] and plan["fits"]
    assert "all-gather" in {one["kind"] for one in plan["collectives"]}
    whole = step_model.complete(plan)
    assert whole["modelled"]["step_seconds"] > 0
    told = report.details(whole) + report.summary([whole])
    assert "pretrain, crops of 32: memory" in told and "closed form:" not in told


@pytest.mark.slow
def test_flops_are_those_of_the_networks_and_their_gradients(plan):
    """Linear layers: once of the frozen backbone, three times of what trains, blocks again where
    remat=dots computes none of them again; attention and the loss are small here."""
    config = configs.load("dinotxt_vitl16", SMALL)
    width, tokens = 32, 4 + 1 + 4
    block = tokens * 2 * (4 * width**2 + 2 * 4 * width**2)
    least = config.batch_size * (2 * block + 3 * 2 * block + 3 * 2 * 24 * block / tokens)
    assert least < plan["flops"] < 3 * least


def test_blocks_of_the_released_batch_stay_within_their_limit():
    config = configs.load("dinotxt_vitl16", ["mesh.devices=8"])
    (pairs,) = text_step.blocks(config, mesh.make("fsdp", 8), 2048).values()
    assert pairs["rows"] == 1024 and pairs["texts"] * pairs["blocks"] == 8192
    assert pairs["logits"] == 4 * pairs["rows"] * pairs["texts"] <= 2**23


def test_a_table_of_parameters_is_refused_with_the_way_on():
    with pytest.raises(ConfigError, match=r"aligns text.*dinojax plan --config dinotxt_vitl16"):
        shards.shards("dinotxt_vitl16", [])
