"""Continue pretraining from a released ViT-B/16, as configs/adapt_vitl16.py. Not measured.

Run:   dinojax train --config configs/adapt_vitb16.py --run runs/adapted \
           --set heads:start.source=WEIGHTS --set data.path=IMAGES --set knn.query=LABELLED
Cost:  not measured
Score: not measured. The run measures k-NN before it changes anything, the number to beat
"""

from dinojax.configs import adapt_vitl16

STAGES, smoke = adapt_vitl16.STAGES, adapt_vitl16.smoke


def get_config():
    c = adapt_vitl16.get_config()
    c.model.name = "vitb"
    return c
