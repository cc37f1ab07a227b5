#!/usr/bin/env bash
# facebookresearch/dinov3 6876159, open-vocabulary segmentation of dino.txt: the vision tower returns
# (cls of the head, patches of the head, patches of the backbone), and the notebook keeps the first and
# the third. So words are compared with patches of the frozen backbone, which never learned to meet them.
# Users get 18.9 and 22.6 mIoU with it (issues 64 and 200), the paper has 24.7 and 36.9.
# An argument is another place to clone from, such as a local mirror.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
git init --quiet "$work/repo"
git -C "$work/repo" fetch --quiet --depth 1 "${1:-https://github.com/facebookresearch/dinov3}" \
    6876159a11b4df116f30f667f8c9888617df0751
git -C "$work/repo" checkout --quiet FETCH_HEAD -- \
    dinov3/eval/text/vision_tower.py notebooks/dinotxt_segmentation_inference.ipynb
cat > "$work/show.py" <<'PY'
import ast
import json
import sys

tower, notebook = (open(path).read() for path in sys.argv[1:])
functions = {f.name: f for f in ast.walk(ast.parse(tower)) if isinstance(f, ast.FunctionDef)}
given = functions["get_class_and_patch_tokens"]
(returned,) = [node.value for node in ast.walk(given) if isinstance(node, ast.Return)]
of_head = ["image_tokens" in ast.unparse(value) for value in returned.elts]
print("returned:", [ast.unparse(value) for value in returned.elts])

cells = ["".join(cell["source"]) for cell in json.loads(notebook)["cells"]]
(line,) = [x.strip() for cell in cells for x in cell.split("\n") if "get_class_and_patch_tokens" in x]
names = [name.id for name in ast.parse(line).body[0].targets[0].elts]
print("notebook:", line)
place = names.index("patch_tokens")
print("patches that meet words are of the", "head" if of_head[place] else "frozen backbone")
assert of_head == [True, True, False]
assert place == 2, "it takes the head's now"
PY
python3 "$work/show.py" "$work/repo/dinov3/eval/text/vision_tower.py" \
    "$work/repo/notebooks/dinotxt_segmentation_inference.ipynb"
