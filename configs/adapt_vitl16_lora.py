"""Continue pretraining from a released ViT-L/16 with low-rank adapters alone. Not measured.

Run:   dinojax train --config configs/adapt_vitl16_lora.py --run runs/adapted \
           --set heads:start.source=WEIGHTS --set data.path=IMAGES --set knn.query=LABELLED
Cost:  not measured
Score: not measured. The run measures k-NN before it changes anything, the number to beat

As configs/adapt_vitl16.py, but in its second stage adapters (LoRA, arXiv:2106.09685) and heads
train, and nothing else of the backbone. Checkpoints and exports hold merged weights. There is no
anchor: adapters move little, and it would cost a third network.
"""

from dinojax.configs import adapt_vitl16, base

smoke = adapt_vitl16.smoke


def get_config():
    return adapt_vitl16.get_config()


def heads(c):
    return adapt_vitl16.heads(c)


def adapt(c):
    """Adapters alone, at the rate that is usual for them."""
    c = adapt_vitl16.adapt(c)
    c.gram.update(enabled=False, anchor="")
    c.schedules.lr = base.schedule(0.0, 2e-4, 2e-6, warmup=4000)  # [ours]
    c.adapter.rank = 16
    return c


STAGES = {"heads": heads, "adapt": adapt}
