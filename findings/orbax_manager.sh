#!/usr/bin/env bash
# orbax-checkpoint 0.12.8, CheckpointManager. Three guesses about what the next start finds. A run that went
# back to step 100 saves step 150 although 200 exists: instead save returns False, and nothing is written
# until 201. With best_fn the newest checkpoint stays beside the best until a newer one comes: instead it is
# dropped at once if it is worse, though save says True, and a killed run goes back to the second best,
# however old. A metric of NaN is the worst: instead it is the best, and a step that diverged pushes a good
# one out.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 orbax-checkpoint==0.12.8
cat > "$work/show.py" <<'PY'
import tempfile

import jax.numpy as jnp
import orbax.checkpoint as ocp


def manager(**options):
    options = ocp.CheckpointManagerOptions(**options)
    return ocp.CheckpointManager(tempfile.mkdtemp(), options=options)


def save(checkpoints, step, **more):
    state = ocp.args.StandardSave({"x": jnp.full(2, float(step))})
    saved = checkpoints.save(step, args=state, **more)
    checkpoints.wait_until_finished()
    return saved


print("orbax-checkpoint", ocp.__version__)
went_back = manager()
told = {step: save(went_back, step) for step in (100, 200, 150, 201)}
print("saved:", told, "there:", went_back.all_steps())
assert told == {100: True, 200: True, 150: False, 201: True}
assert went_back.all_steps() == [100, 200, 201]

best = manager(max_to_keep=2, best_fn=lambda metrics: metrics["knn"], best_mode="max")
kept = {}
for step, accuracy in ((1, 0.9), (2, 0.8), (3, 0.7), (4, 0.6), (5, float("nan"))):
    assert save(best, step, metrics={"knn": accuracy})
    kept[step] = best.all_steps()
    print(f"after step {step} of {accuracy}: there {kept[step]}", end=", ")
    print("latest", best.latest_step(), "best", best.best_step())
assert kept[3] == kept[4] == [1, 2]
assert kept[5] == [1, 5] and best.best_step() == 5
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"
