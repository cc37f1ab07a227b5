"""Break the code one line at a time and see which tests notice.

    python -m tests.mutants                   # all of the list below, with fast tests
    python -m tests.mutants --slow            # survivors once more, with slow tests
    python -m tests.mutants --only NAME ...   # some of them

Works on a copy of the tree in a temporary folder. A mutation names a piece of text that stands
once in dinojax/, wherever that is, what replaces it, and the tests that should fail then: a
mutation whose text is not there, or there twice, and a test that does not exist, are errors. Prints
a table; the exit code is 1 if a mutation survived.
"""

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("dinojax", "configs", "benchmarks", "tests", "launch", "setup.cfg", "pyproject.toml")
TIMEOUT = 600.0  # seconds of the tests of one mutation; endless is noticed as well
ANY = ["-m", "slow or exhaustive or not slow"]  # in place of the markers that setup.cfg leaves out


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A line with a fault in it. Tests are functions, or one case of them: name[case]."""

    name: str
    old: str
    new: str
    fast: tuple[str, ...]
    slow: tuple[str, ...] = ()


RUN = "test_a_killed_run_ends_like_one_that_was_not"
TOTAL = "test_the_total_is_the_weighted_sum_of_its_terms"
SCHEDULES = "test_the_imagenet_recipe_gives_the_reference_values"
BLOCKS = "test_blocks_equal_the_definitions_wherever_prototypes_are"
REPLAYED = "test_recorded_numbers_are_reproduced"
REFRESHED = "test_a_refresh_copies_the_ema_exactly_and_only_as_often_as_it_may"
HANDED = "test_weights_and_optimizer_are_handed_over_as_each_stage_says"
HANDED_OVER = "test_a_stage_is_handed_over_what_it_asks_for"
CROPS = "test_crops_are_the_drawn_boxes_resized_by_pillow"

MUTATIONS = (
    # -- losses
    Mutation(
        "koleo_no_self_exclusion",
        "similarity_UVV = jnp.where(self_VV, -2.0, similarity_UVV)",
        "similarity_UVV = jnp.where(self_VV, similarity_UVV, similarity_UVV)",
        ("test_koleo_loss_equals_the_reference",),
    ),
    Mutation(
        "koleo_no_grad_to_neighbour",
        "take(unit_UVD, nearest_UVn) + EPS",
        "take(fixed_UVD, nearest_UVn) + EPS",
        ("test_koleo_gradient_reaches_the_neighbour",),
    ),
    Mutation(
        "sinkhorn_one_iteration_less",
        "for _ in range(num_iterations):\n            log_u_K",
        "for _ in range(num_iterations - 1):\n            log_u_K",
        (f"{BLOCKS}[sinkhorn-one]",),
    ),
    Mutation(
        "sinkhorn_per_device",
        "        if not self.row_axes:\n",
        "        if True:\n",
        (f"{BLOCKS}[sinkhorn-dp]",),
    ),
    Mutation(
        "prototype_grad_not_summed_over_rows",
        "return jax.lax.psum(grad_ZK, others) if others else grad_ZK",
        "return grad_ZK",
        (f"{BLOCKS}[sinkhorn-dp]",),
    ),
    Mutation(
        "local_weight_ignored",
        'local_pairs / pairs * now["local_weight"] * terms["dino_local"]',
        'local_pairs / pairs * terms["dino_local"]',
        (TOTAL,),
    ),
    Mutation(
        "ibot_weight_sign",
        'total = spec.dino * dino + spec.ibot * terms["ibot"]',
        'total = spec.dino * dino - spec.ibot * terms["ibot"]',
        (TOTAL,),
    ),
    Mutation(
        "koleo_not_times_crops",
        'total += spec.koleo * num_global * terms["koleo"]',
        'total += spec.koleo * terms["koleo"]',
        (TOTAL,),
    ),
    Mutation(
        "temperature_of_teacher_fixed",
        'spec, temperature = self.losses, now["teacher_temperature"]',
        "spec, temperature = self.losses, 0.07",
        ("test_targets_are_distributions_over_the_whole_batch",),
        (REPLAYED,),
    ),
    Mutation(
        "distill_student_masked",
        "masks = [None if self.frozen else _flat(views.masks_BGP), None]",
        "masks = [_flat(views.masks_BGP), None]",
        ("test_a_student_of_a_frozen_teacher_sees_every_patch",),
        (REPLAYED,),
    ),
    # -- crops and masks
    Mutation(
        "mask_lower_edges",
        "_linspace(*ratio, num)[1:]",
        "_linspace(*ratio, num)[:-1]",
        ("test_total_count_of_a_group_is_the_references",),
    ),
    Mutation(
        "mask_edges_from_one_end",
        "np.where(i < (num + 1) // 2, first + step * i, last - step * (num - i))",
        "first + step * i",
        ("test_every_ladder_has_the_recorded_digest",),
    ),
    Mutation(
        "blur_rates_swapped",
        "jnp.array([first, second] + [local] * spec.num_local)",
        "jnp.array([second, first] + [local] * spec.num_local)",
        ("test_each_crop_is_blurred_and_solarised_at_its_own_rate",),
        ("test_only_the_released_rates_of_blur_and_solarise_reach_each_crop",),
    ),
    Mutation(
        "flip_inverted",
        "flips_K = draws_KN[:, boxes.NUM_DRAWS] < spec.flip_rate",
        "flips_K = draws_KN[:, boxes.NUM_DRAWS] >= spec.flip_rate",
        (CROPS,),
    ),
    Mutation(
        "local_area_is_global",
        "cut(crop_draws_KN[G:], area=spec.local_area,",
        "cut(crop_draws_KN[G:], area=spec.global_area,",
        (CROPS,),
    ),
    # -- networks and their first values
    Mutation(
        "drop_path_no_scale",
        "jnp.asarray(len(x_BND) / num_groups / k, y_UkND.dtype)",
        "jnp.asarray(1.0, y_UkND.dtype)",
        ("test_drop_path_computes_an_exact_subset_per_group",),
    ),
    Mutation(
        "local_norm_on_globals",
        "if local and spec.untie_local_cls_norm:",
        "if spec.untie_local_cls_norm:",
        ("test_local_crops_have_their_own_cls_norm_in_training_only",),
    ),
    Mutation(
        "rope_same_draw_all_blocks",
        "changes = jax.tree.map(lambda x: x.swapaxes(0, 1), draw)",
        "changes = jax.tree.map(lambda x: 0 * x.swapaxes(0, 1) + x.swapaxes(0, 1)[:1], draw)",
        ("test_draws_differ_by_group_block_branch_and_crop_set_only",),
    ),
    Mutation(
        "initialised_with_the_attention_of_the_run",
        'spec = dataclasses.replace(spec, attention="plain")',
        "spec = dataclasses.replace(spec)",
        ("test_a_vit_trains_and_is_evaluated[cudnn-bfloat16]",),
    ),
    Mutation(
        "initial_values_from_step_0",
        "INIT = 2**31",
        "INIT = 0",
        ("test_no_step_has_the_key_of_initial_values_or_one_made_of_it",),
    ),
    # -- optimizer and schedules
    Mutation(
        "freeze_off_by_one",
        "frozen = step + steps_before < freeze_last_layer",
        "frozen = step + steps_before <= freeze_last_layer",
        (SCHEDULES,),
    ),
    Mutation(
        "schedule_plus_one",
        "float(curve(step + offsets[name]))",
        "float(curve(step + 1 + offsets[name]))",
        (SCHEDULES,),
    ),
    Mutation(
        "layer_decay_exponent",
        "layer_decay ** np.arange(depth, 0, -1.0)",
        "layer_decay ** np.arange(depth - 1, -1, -1.0)",
        ("test_learning_rates_decay_by_block",),
    ),
    Mutation(
        "clip_all_parts_together",
        "norms = part_norms(grads)\n            scales",
        "norms = dict.fromkeys(grads, optax.tree.norm(grads))\n            scales",
        ("test_each_part_is_clipped_by_its_own_norm",),
    ),
    Mutation(
        "adam_count_off",
        "count = optax.safe_increment(state.count)",
        "count = optax.safe_increment(state.count) + 1",
        ("test_without_factors_it_is_optax_adamw",),
    ),
    # -- the step
    Mutation(
        "ema_before_update",
        '1.0 - now["momentum"]), state.ema, followed)',
        '1.0 - now["momentum"]), state.ema, {name: state.student[name] for name in state.ema})',
        ("test_the_ema_moves_a_tenth_of_the_way_to_the_new_student",),
    ),
    Mutation(
        "ema_the_wrong_share_of_the_way",
        "return ema + share * (student - ema)",
        "return student + share * (ema - student)",
        ("test_the_ema_moves_a_tenth_of_the_way_to_the_new_student",),
    ),
    Mutation(
        "teacher_is_student",
        "teacher = state.ema if teacher is None else teacher",
        "teacher = state.student if teacher is None else teacher",
        ("test_targets_come_from_the_ema_and_gradients_from_the_student",),
    ),
    Mutation(
        "accumulate_no_divide",
        "return jax.tree.map(lambda x: x / self.accumulate, total)",
        "return total",
        ("test_a_gradient_is_the_mean_of_those_of_the_micro_batches",),
        ("test_eight_devices_and_two_micro_batches_take_the_same_step",),
    ),
    # -- runs
    Mutation(
        "gram_refresh_from_student",
        'dataclasses.replace(state, gram=compiled(state.ema["backbone"]))',
        'dataclasses.replace(state, gram=compiled(state.student["backbone"]))',
        ("test_a_renewed_anchor_is_the_ema",),
        (REFRESHED,),
    ),
    Mutation(
        "gram_refresh_one_step_late",
        "run.anchor.renews(self.number)",
        "run.anchor.renews(self.number - 1)",
        ("test_the_anchor_is_renewed_once_as_many_steps_are_done_as_the_config_says",),
        (REFRESHED,),
    ),
    Mutation(  # of a run alone and of students: one trainer
        "loop_schedule_plus_one",
        "now = run.program.now(self.number)",
        "now = run.program.now(self.number + 1)",
        (
            "test_a_step_gets_the_schedules_of_the_steps_done_before_it",
            "test_a_student_of_a_family_learns_the_step_that_it_is_at",
        ),
        (
            "test_metrics_have_a_row_per_step_and_knn_at_both_ends",
            "test_one_student_learns_like_in_train_and_another_joins_later",
        ),
    ),
    Mutation(
        "family_teaches_those_who_are_ahead",
        "s.number == self._number and not s.has_failed",
        "s.number >= self._number and not s.has_failed",
        ("test_only_students_who_have_come_so_far_take_a_step",),
        ("test_one_student_learns_like_in_train_and_another_joins_later",),
    ),
    Mutation(
        "resume_position_zero",
        "start=trainer.position)",
        "start=0)",
        ("test_images_go_on_where_the_checkpoint_says",),
        (f"{RUN}[3]",),
    ),
    Mutation(
        "student_not_from_ema_at_handover",
        "replace(state, student={**state.student, **_copied(ema)}, ema=ema)",
        "replace(state, ema=ema)",
        (f"{HANDED_OVER}[ema-keep]",),
        (HANDED,),
    ),
    Mutation(
        "student_random_beside_new_heads",
        'own = {} if is_text else {"backbone": _copied(backbone)}',
        "own: dict = {}",
        (f"{HANDED_OVER}[ema-new]",),
    ),
    Mutation(
        "state_without_its_optimizer_at_handover",
        'names = ("student", "ema", "opt_state")',
        'names = ("student", "ema")',
        (f"{HANDED_OVER}[state-keep]",),
        (HANDED,),
    ),
    # -- evaluation and plans
    Mutation(
        "eval_student_not_ema",
        'network = network_of(state.ema["backbone"])',
        'network = network_of(state.student["backbone"])',
        ("test_an_evaluation_looks_at_the_ema",),
        ("test_eval_knn_measures_the_checkpoint_of_a_run",),
    ),
    Mutation(
        "knn_unweighted",
        "weights_Mk = jax.nn.softmax(nearest_Mk / temperature, axis=1)",
        "weights_Mk = jnp.ones_like(nearest_Mk)",
        ("test_temperature_decides_between_one_near_and_two_farther",),
    ),
    Mutation(
        "a_step_may_take_the_whole_card",
        "return self.memory * self.share",
        "return self.memory",
        ("test_a_step_must_fit_in_the_share_of_a_gpu",),
    ),
)


def place(root: Path, text: str) -> Path:
    """The file of dinojax/ that has the text. Raises ValueError unless it stands there once."""
    counts = {path: path.read_text().count(text) for path in root.glob("dinojax/**/*.py")}
    found = [str(path.relative_to(root)) for path, count in counts.items() for _ in range(count)]
    if len(found) != 1:
        raise ValueError(f"{text!r} stands {len(found)} times in dinojax/, not once: {found}")
    return root / found[0]


def node(root: Path, test: str) -> str:
    """What pytest calls a test. Raises ValueError unless exactly one file defines it."""
    function = f"def {test.partition('[')[0]}("
    found = [path for path in root.glob("tests/**/test_*.py") if function in path.read_text()]
    if len(found) != 1:
        raise ValueError(f"{test} is defined in {len(found)} files of tests/, not in one.")
    return f"{found[0].relative_to(root)}::{test}"


def killer(root: Path, tests: Iterable[str], options: list[str]) -> str | None:
    """The first of some tests that fails, or `endless`; None if all pass.

    Raises RuntimeError where pytest ran none.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *options]
    nodes = [node(root, test) for test in tests]
    # Bytecode of a mutation of equal length, made within a second, would be taken for current.
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    how = {"capture_output": True, "text": True, "timeout": TIMEOUT}
    try:
        done = subprocess.run([*command, *nodes], cwd=root, env=env, **how)
    except subprocess.TimeoutExpired:
        return "endless"
    if done.returncode == 0 and " passed" in done.stdout:
        return None
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode != 1 or not failed:
        raise RuntimeError(f"pytest did not run {nodes}:\n{done.stdout[-2000:]}{done.stderr}")
    return failed[0].split(" - ")[0].rpartition("::")[2]


def examine(
    root: Path, mutations: Iterable[Mutation], *, slow: bool = False
) -> Iterator[tuple[str, str, str]]:
    """(name, file, which tests noticed) of every mutation, made in the tree at root and unmade.

    slow: let slow tests look at what fast ones did not see. Raises ValueError for a mutation or
    test that does not exist, and RuntimeError if a test fails without any.
    """
    mutations = list(mutations)
    for one in mutations:
        place(root, one.old)
    for kind, options in (("fast", []), ("slow", ANY))[: 1 + slow]:
        tests = list(dict.fromkeys(test for one in mutations for test in getattr(one, kind)))
        if tests and (failed := killer(root, tests, options)):
            raise RuntimeError(f"{failed} fails without a mutation.")
    for one in mutations:
        path = place(root, one.old)
        whole = path.read_text()
        path.write_text(whole.replace(one.old, one.new))
        began = time.monotonic()
        try:
            told = killer(root, one.fast, [])
            told = f"killed by {told}" if told else "SURVIVED"
            if told == "SURVIVED" and slow and one.slow:
                late = killer(root, one.slow, ANY)
                told += f" fast tests, killed by {late}" if late else " slow tests too"
        finally:
            path.write_text(whole)
        yield one.name, str(path.relative_to(root)), f"{told} ({time.monotonic() - began:.0f} s)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slow", action="store_true", help="slow tests too, of what survives")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of these mutations")
    args = parser.parse_args()
    names = [one.name for one in MUTATIONS]
    if unknown := set(args.only or ()) - set(names):
        parser.error(f"no mutation is called {', '.join(sorted(unknown))}")
    wanted = [one for one in MUTATIONS if one.name in (args.only or names)]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in COPIED:
            source, target = ROOT / name, root / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy2(source, target)
        print("| mutation | file | tests |\n|---|---|---|", flush=True)
        for row in examine(root, wanted, slow=args.slow):
            print(f"| {' | '.join(row)} |", flush=True)
            survivors += row[2].startswith("SURVIVED")
    print(f"{survivors} of {len(wanted)} survived")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
