#!/usr/bin/env bash
# grain 0.2.18. Guess: the state of an iterator over a MapDataset knows its pipeline, or refuses another.
# Instead it is one number, the batches so far, and any pipeline takes it without a word. Continued with twice
# the batch size, 27 images of an epoch of 128 never come and 11 come twice, with another seed 25 and 25.
# grain's DataLoader counts records, refuses another sampler or source, and gets a changed batch size right.
# Who moves a run to other hardware in the middle of an epoch has to keep the number of images, and to compare
# the rest.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 grain==0.2.18 numpy==2.4.6
cat > "$work/show.py" <<'PY'
import importlib.metadata

import grain

IMAGES, SIZE, SEEN = 128, 8, 4


def batches(size, seed=0, images=IMAGES):
    data = grain.MapDataset.range(images).seed(seed).shuffle().repeat().batch(size)
    return iter(data.to_iter_dataset())


def loaded(size, seed=0, images=IMAGES):
    sampler = grain.samplers.IndexSampler(images, shuffle=True, num_epochs=None, seed=seed)
    data, steps = grain.sources.RangeDataSource(0, images, 1), [grain.transforms.Batch(size)]
    return iter(grain.DataLoader(data_source=data, sampler=sampler, operations=steps, worker_count=0))


def take(iterator, number):
    return {int(x) for _ in range(number) for x in next(iterator)}


print("grain", importlib.metadata.version("grain"), "of an epoch of 128 images:")
found = {}
for make in (batches, loaded):
    first = make(SIZE)
    trained, state = take(first, SEEN), first.get_state()
    print(make.__name__, "state after 4 batches of 8:", state if make is batches else "its records")
    for name, change in {
        "the same": {},
        "batches of 16": {"size": 16},
        "another seed": {"seed": 1},
        "a data set of 200": {"images": 200},
    }.items():
        then = make(**({"size": SIZE} | change))
        try:
            then.set_state(state)
        except ValueError:
            found[make.__name__, name] = "refused"
        else:
            size = change.get("size", SIZE)
            rest = take(then, (IMAGES - len(trained)) // size)
            known = set(range(IMAGES))
            found[make.__name__, name] = len(rest & trained), len(known - rest - trained)
        print(f"{make.__name__}, continued with {name}: come twice, never:", found[make.__name__, name])
changes = "batches of 16", "another seed", "a data set of 200"
assert found["batches", "the same"] == found["loaded", "the same"] == (0, 0)
assert all(found["batches", name] != "refused" and found["batches", name][1] > 10 for name in changes)
assert [found["loaded", name] for name in changes] == [(0, 0), "refused", "refused"]
PY
JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/show.py"
