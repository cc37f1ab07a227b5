"""A small network on pictures of your own, guided to forget what took them. For a CPU.

Run:   python -m tests.programs.own_data prepare OUT --plant, then
       dinojax train --config configs/guided_tiny.py --run runs/guided --epochs 20 \
           --set data.path=OUT/bank --set data.metadata=OUT/bank.csv --set knn.query=OUT/query
Cost:  not measured
Score: not measured; `python -m tests.programs.own_data guided OUT` compares it with no guide

A folder, and a table with the columns path and device. What the device does to colours is planted
by that program, so that it can be told whether it is gone (docs/own_data.md).
"""

from dinojax.config.formulas import scratch as computed  # noqa: F401  (fills in what is not set)
from dinojax.configs import base, own_small


def get_config():
    c = own_small.get_config()
    c.data.source = "folder"
    c.batch_size = 64
    c.group_size = 8  # one group per device on up to eight devices
    c.model.update(width=96, depth=4, num_heads=3, patch_size=8)
    c.crops.update(global_size=48, local_size=24, num_local=4)
    c.dino_head.update(hidden=256, bottleneck=64)
    c.ibot_head.update(hidden=256, bottleneck=64)
    c.guides.rows = (base.guide("device", "classification", effect="remove", weight=1.0),)
    c.log.pictures = False
    c.knn.update(features="both", mosaics=0)
    return c


def smoke(c):
    """The same recipe, small enough for a test, without metadata: two steps."""
    c = base.shrink(c)
    c.guides.rows = ()
    return c
