"""Eight steps of a very small network."""

from configs import tiny


def get_config():
    c = tiny.smoke(tiny.get_config())
    c.num_steps = 8
    c.batch_size = 8
    c.group_size = 4
    c.data.source = "folder"
    c.data.box_size = 24
    c.crops.global_size = 16
    c.crops.local_size = 8
    c.crops.num_local = 2
    c.model.patch_size = 4
    c.model.depth = 1
    c.model.width = 24
    c.dino_head.update(hidden=16, bottleneck=8, prototypes=32)
    c.ibot_head.update(hidden=16, bottleneck=8, prototypes=32)
    c.knn.every = 8
    c.checkpoint.every = 4
    c.log.every = 1
    c.log.pictures = False
    return c
