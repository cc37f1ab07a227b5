"""Replays of recorded correspondences, discovered objects, and foreground pictures."""

from collections.abc import Iterator

import jax
import numpy as np
from PIL import Image

from dinojax.eval import correspondence, foreground, tokencut
from tests.golden.record import Check, Record, Skip


def replay_navi(record: Record) -> Iterator[Check | Skip]:
    """The reference ran in float32, where equal ranks fall either way: one match may differ."""
    config = record.meta["config"]
    errors = {"3d": [], "2d": []}
    angles = []
    for pair in range(config["pairs"]):
        sides = [np.moveaxis(record[f"in/{name}_{pair}"], 0, -1).astype(np.float64)
                 for name in ("feat0", "feat1", "xyz0", "xyz1")]  # fmt: skip
        with jax.enable_x64(True):
            matches = correspondence.match_points(*sides, num=config["num_corr"], rank="ratio")
        yield from _same_matches(record, pair, matches)
        pose, camera = (record[f"in/{name}_{pair}"].astype(np.float64) for name in ("Rt", "K"))
        # Errors are compared match by match, on the recorded matches.
        moved = correspondence.moved(record[f"out/xyz_src_{pair}"].astype(np.float64), pose)
        target = record[f"out/xyz_tgt_{pair}"].astype(np.float64)
        seen = [correspondence.projected(points, camera) for points in (moved, target)]
        errors["3d"].append(np.linalg.norm(moved - target, axis=1))
        errors["2d"].append(np.linalg.norm(seen[0] - seen[1], axis=1))
        yield Check(f"out/err3d_{pair}", errors["3d"][-1], record[f"out/err3d_{pair}"], 1e-5)
        pixels = record[f"out/err2d_{pair}"]
        # Points behind the camera are 1e10 pixels away.
        bound = 1e-3 + 1e-5 * np.abs(pixels)
        yield Check(f"out/err2d_{pair}", errors["2d"][-1], pixels, bound)
        angles.append(correspondence.rotation_angle(pose[:, :3]))
        reason = (
            "the public code's other branch ranks the worst matches first; ours ranks by cosine"
        )
        yield Skip(f"out/weight_no_ratio_{pair}", reason)
        yield Skip(f"out/uv_src_no_ratio_{pair}", reason)
    for name, kind in (("recall3d_", "3d"), ("recall2d_", "2d")):
        for threshold in record.under(f"out/{name}"):
            means = [correspondence.recall(e, float(threshold)) for e in errors[kind]]
            yield record.check(f"out/{name}{threshold}", np.float64(np.mean(means)))
    yield Check("out/rot_angle", np.array(angles), record["out/rot_angle"], 1e-3)
    edges = [0, 30, 60, 90, 120]
    recalls = [correspondence.recall(e, 0.02) / 100 for e in errors["3d"]]
    ours, recorded = (
        np.array(correspondence.binned(recalls, angles, edges)),
        record["out/binned_2cm"],
    )
    yield Check("out/binned_2cm is NaN", np.isnan(ours), np.isnan(recorded), 0)
    yield Check("out/binned_2cm", np.nan_to_num(ours), np.nan_to_num(recorded), 1e-4)


def _same_matches(record: Record, pair: int, matches) -> Iterator[Check]:
    recorded = {name: record[f"out/{name}_{pair}"] for name in ("uv_src", "uv_tgt", "weight")}
    theirs = {tuple(uv): row for row, uv in enumerate(recorded["uv_src"])}
    shared = [(mine, theirs[tuple(uv)]) for mine, uv in enumerate(matches.source_uv)
              if tuple(uv) in theirs]  # fmt: skip
    mine, other = (list(rows) for rows in zip(*shared, strict=True))
    missing = len(recorded["weight"]) - len(shared)
    yield Check(f"out/uv_src_{pair} not found", missing, 0, 1)
    moved = np.any(matches.target_uv[mine] != recorded["uv_tgt"][other], axis=1)
    yield Check(f"out/uv_tgt_{pair} elsewhere", int(moved.sum()), 0, 1)
    mine, other = np.array(mine)[~moved], np.array(other)[~moved]
    yield Check(f"out/weight_{pair}", matches.score[mine], recorded["weight"][other], 1e-4)
    for name, ours in (("xyz_src", matches.source_xyz), ("xyz_tgt", matches.target_xyz)):
        yield Check(f"out/{name}_{pair}", ours[mine], record[f"out/{name}_{pair}"][other], 1e-6)


def replay_spair(record: Record) -> Iterator[Check]:
    config = record.meta["config"]
    errors, pairs = [], []
    for number in range(config["n"]):
        sides = [np.moveaxis(record[f"in/feats_{s}{number}"], 0, -1) for s in ("src", "tgt")]
        keypoints = [record[f"in/kps_{side}{number}"] for side in ("src", "tgt")]
        found = correspondence.keypoint_errors(
            *sides,
            *keypoints,
            image_size=config["image_size"],
            scale=float(record[f"in/thresh_scale{number}"]),
        )
        yield Check(f"out/err_same{number}", found.error, record[f"out/err_same{number}"], 1e-6)
        yield Check(f"out/err_nn{number}", found.nearest_error, record[f"out/err_nn{number}"], 1e-6)
        yield record.check(f"out/index_same{number}", found.keypoint)
        yield record.check(f"out/index_nn{number}", found.nearest)
        yield record.check(f"out/heatmap_argmax_xy{number}", found.places)
        errors.append(found.error)
        pairs.append(np.stack([found.keypoint, found.nearest], axis=1))
    for threshold in config["thresholds"]:
        ours = correspondence.recall(np.concatenate(errors), threshold)
        # Recorded as float32 in a float64.
        yield Check(f"out/recall_{threshold}", ours, record[f"out/recall_{threshold}"], 1e-5)
    confusion = np.zeros(record["out/confusion"].shape)
    np.add.at(confusion, tuple(np.concatenate(pairs).T), 1)
    yield record.check("out/confusion", confusion)


def replay_tokencut(record: Record) -> Iterator[Check]:
    for number, case in enumerate(record.meta["config"]["cases"]):
        grid = case["h"], case["w"]
        found = tokencut.tokencut(
            record[f"in/feats{number}"].reshape(*grid, -1),
            threshold=case["tau"],
            patch_size=case["patch"],
            image_size=tuple(case["image"]),
        )
        yield record.check(f"out64/box{number}", np.array(found.box))
        yield record.check(f"out64/mask{number}", found.mask_hw)
        # Of entries that are equal but for rounding either may be the seed.
        largest = found.vector_hw.flat[int(record[f"out64/seed{number}"])]
        yield Check(f"out64/seed{number} entry", largest, found.vector_hw.flat[found.seed], 1e-12)
        yield record.check(f"out64/labels{number}", found.parts_hw)
        # Eigenvectors are as exact as their gap to the next eigenvalue allows.
        gap = np.min(np.abs(np.diff(record[f"aux64/eigenvalues0_3_{number}"])[:2]))
        recorded = record[f"out64/eigvec{number}"]
        bound = max(1e-9, 1e-13 / gap) * np.max(np.abs(recorded))
        yield Check(f"out64/eigvec{number}", found.vector_hw, recorded, bound)
    yield record.check("out64/iou", tokencut.box_iou(record["in/box"], record["in/boxes"]))


def replay_foreground(record: Record) -> Iterator[Check]:
    config = record.meta["config"]
    inputs = record["in/lr_x"], record["in/lr_y"]
    precisions = foreground.leave_one_out(*inputs, record["in/lr_image"], config["cs"])
    # At C = 1e-7 scikit-learn stops at its first step, far from the least loss.
    bound = np.where(np.array(config["cs"]) < 1e-6, 5e-3, 1e-6)
    yield Check("out/loo_ap", precisions, record["out/loo_ap"], bound[None])
    classifier = foreground.fit_classifier(*inputs, c=config["C"])
    # scikit-learn stops early, in float32.
    weight = classifier.weight_D[None]
    yield Check("out/clf_coef", weight, record["out/clf_coef"], 1e-3)
    yield Check("out/clf_intercept", [classifier.offset], record["out/clf_intercept"], 1e-3)
    grid = config["h"], config["w"]
    scores = classifier.score(record["in/patches"]).reshape(grid)
    yield Check("out/fg_score", scores, record["out/fg_score"], 1e-4)
    median = foreground.smoothed(scores)
    yield Check("out/fg_median", median, record["out/fg_median"], 1e-4)
    selected = (median > 0.5).ravel()
    yield Check("out/selected", selected, record["out/selected"], 0)
    yield from _pca(record, grid, median > 0.5)
    patch, size = config["patch"], config["image_size"]
    mask = record["in/mask"]
    columns = int(mask.shape[1] * size / (mask.shape[0] * patch))
    picture = Image.fromarray(mask).resize((columns * patch, size), Image.Resampling.BILINEAR)
    share = np.asarray(picture, np.float64) / 255
    yield Check("out/mask_resized", share[None], record["out/mask_resized"], 1e-6)
    cells = share.reshape(size // patch, patch, columns, patch).mean(axis=(1, 3))
    yield Check("out/mask_quantized", cells, record["out/mask_quantized"], 1e-6)


def _pca(record: Record, grid, front) -> Iterator[Check]:
    patches = record["in/patches"]
    pca = foreground.fit_pca(patches[front.ravel()])
    signs = np.sign(np.sum(pca.components_KD * record["out/pca_components"], axis=1))
    yield Check("out/pca_mean", pca.mean_D, record["out/pca_mean"], 1e-6)
    turned = pca._replace(components_KD=pca.components_KD * signs[:, None])
    yield Check("out/pca_components", turned.components_KD, record["out/pca_components"], 1e-5)
    variance = record["out/pca_explained_variance"]
    yield Check("out/pca_explained_variance", pca.variance_K, variance, 1e-5 * variance.max())
    projected = turned.project(patches).reshape(*grid, 3)
    yield Check("out/pca_projection", projected, record["out/pca_projection"], 1e-4)
    colours = foreground.rainbow(turned, patches.reshape(*grid, -1), front)
    yield Check("out/rgb", np.moveaxis(colours, -1, 0), record["out/rgb"], 1e-4)


# File name -> (marker in the content, replay); see tests/replay_golden.py.
KINDS = {
    r"correspondence_navi.*\.npz": (r"out/recall3d_.*", replay_navi),
    r"correspondence_spair.*\.npz": (r"out/heatmap_argmax_xy0", replay_spair),
    r"objects_tokencut.*\.npz": (r"out64/eigvec0", replay_tokencut),
    r"demo_pca_foreground.*\.npz": (r"out/pca_components", replay_foreground),
}
