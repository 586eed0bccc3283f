"""Slips of the pen in losses on groups, one at a time, and the test that notices each."""

import ast
import importlib.util
import sys
import types
from importlib import import_module
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# The test that notices, with its argument -> function, what stands once in it, what it becomes.
FAULTS: dict[tuple[str, str], list[tuple[str, str, str]]] = {
    ("groups.test_values_by_hand", ""): [
        ("policy_gradient.clipped", "torch.minimum", "torch.maximum"),
    ],
    ("groups.test_the_coefficient_is_what_multiplies_the_gradient", "bounded"): [
        ("policy_gradient.clipped", "ratio.clamp(max=bound)", "ratio"),
    ],
    ("groups.test_the_coefficient_is_what_multiplies_the_gradient", "dual"): [
        ("policy_gradient.dual_clipped", "advantage < 0", "advantage > 0"),
    ],
    ("groups.test_the_coefficient_is_what_multiplies_the_gradient", "cispo"): [
        ("policy_gradient.cispo", "log_ratio.detach().exp()", "log_ratio.exp()"),
    ],
    ("groups.test_the_coefficient_is_what_multiplies_the_gradient", "sapo"): [
        ("policy_gradient.sapo", "* 4.0 / k", "* 4.0"),
        ("policy_gradient.sapo", "advantage > 0", "advantage < 0"),
    ],
    ("groups.test_the_gate_of_vespo_is_one_on_policy_and_falls_on_both_sides", ""): [
        ("policy_gradient.vespo", "- g * total.exp()", "- total.exp()"),
    ],
    ("groups.test_the_coefficient_is_what_multiplies_the_gradient", "topr"): [
        ("policy_gradient.topr", "log_ratio.detach().exp()", "log_ratio.exp()"),
        ("policy_gradient.topr", "advantage >= 0", "advantage < 0"),
    ],
    ("groups.test_the_coefficient_is_what_multiplies_the_gradient", "one side"): [
        ("policy_gradient.one_side_clipped", "ratio > 1.0", "ratio < 1.0"),
    ],
    ("groups.test_the_coefficient_is_what_multiplies_the_gradient", "two side"): [
        ("policy_gradient.two_side_clipped", "<= 1.0 + high", ">= 1.0"),
    ],
    ("groups.test_the_coefficient_is_what_multiplies_the_gradient", "ring"): [
        ("policy_gradient.ring_clipped", "advantage <= 0", "advantage >= 0"),
    ],
    ("groups.test_the_coefficient_is_what_multiplies_the_gradient", "one side, weighted"): [
        ("policy_gradient._rec", ".detach().exp()", ".exp()"),
    ],
    ("groups.test_the_coefficient_is_what_multiplies_the_gradient", "opmd"): [
        ("policy_gradient.opmd", "/ (2.0 * tau)", "/ tau"),
    ],
    ("groups.test_nft_off_policy_by_hand", ""): [
        ("policy_gradient.nft", "- ratio).detach()", "- ratio)"),
        ("policy_gradient.nft", "-negative *", "negative *"),
        ("policy_gradient.nft", "/ (1.0 - q)", "/ q"),
    ],
    ("groups.test_nft_on_policy_is_grpo", "1"): [
        ("policy_gradient.nft_weight", "(1.0 - q) / q", "q / (1.0 - q)"),
    ],
    ("groups.test_rover_on_policy_is_twice_reinforce", ""): [
        ("policy_gradient.rover", "scale * log_ratio - (", "scale * log_ratio + ("),
    ],
    ("groups.test_rovers_next_value_by_hand", ""): [
        ("policy_gradient.uniform_value", "value[..., 1:]", "value[..., :-1]"),
    ],
    ("groups.test_oreal_clones_what_was_right_and_unlearns_what_was_wrong", ""): [
        ("policy_gradient.oreal", "negative * size", "size"),
    ],
    ("groups.test_advantage_weighted_cloning_is_minimised_by_the_posterior", ""): [
        ("policy_gradient.advantage_weighted", "1.0 / beta", "beta"),
    ],
    ("groups.test_the_geometric_mean_by_hand", ""): [
        ("policy_gradient.gmpo", "advantage > 0", "advantage < 0"),
    ],
    ("groups.test_one_ratio_for_a_sequence", ""): [
        ("policy_gradient.sequence_ratio", "if mean else", "if not mean else"),
    ],
    ("groups.test_advantages_by_hand", ""): [
        ("advantages.leave_one_out", "count - 1.0", "count"),
        ("advantages.shifted", "- shift", "+ shift"),
        ("advantages._deviation", "- correction", ""),
        ("advantages.log_mean_exp", "- _count(member).to(rewards).log()", ""),
        ("advantages.exponential", "1.0 / temperature", "temperature"),
        ("advantages.batch_scaled", "return centred(rewards, member)", "return rewards"),
    ],
    ("groups.test_the_surplus_of_the_bad_is_dropped", ""): [
        ("advantages.balanced", "place < kept", "place <= kept"),
    ],
    ("groups.test_bnpo_of_a_lopsided_shape_by_hand", ""): [
        ("advantages.beta_normalised", "a - 1.0, p", "b - 1.0, p"),
    ],
    ("groups.test_bnpo_matches_moments", ""): [
        ("advantages._beta_shape", "/ 3.0", ""),
    ],
    ("groups.test_risk_with_tails_by_hand", ""): [
        ("advantages.range_value_at_risk", "/ levels[0]", "/ levels[1]"),
        ("advantages.range_value_at_risk", "1.0 - levels[1]", "levels[1]"),
    ],
    ("groups.test_the_tracked_quantile_settles_at_its_level", ""): [
        ("advantages.quantile_step", "level - share", "share - level"),
    ],
    ("groups.test_returns_from_each_token_on", ""): [
        ("advantages.to_go", "ahead >= 0", "ahead <= 0"),
    ],
    ("groups.test_process_rewards_by_hand", ""): [
        ("advantages.process_rewards", "scale * (dense", "(dense"),
    ],
    ("masks.test_covariance_by_hand", ""): [
        (
            "masks.covariance",
            "_gap(logp, mask) * _gap(advantage, mask)",
            "_gap(logp, mask) * advantage",
        ),
    ],
    ("masks.test_kl_cov_takes_the_greatest", ""): [
        ("masks.kl_cov", "-cov", "cov"),
    ],
    ("masks.test_clip_cov_drops_candidates_by_chance", ""): [
        ("masks.clip_cov", "cov > low", "cov > high"),
    ],
    ("masks.test_clip_cov_leaves_out_what_is_clipped_anyway", ""): [
        ("masks.clip_cov", "ratio > 1.0 + clip", "ratio < 1.0"),
    ],
    ("masks.test_high_entropy_is_the_quantile_of_the_batch", ""): [
        ("masks.high_entropy", "1.0 - share", "share"),
    ],
    ("masks.test_lowest_probability_is_a_share_of_the_negatives", ""): [
        ("masks.lowest_probability", "advantage < 0", "advantage > 0"),
    ],
    ("masks.test_conflicts_by_hand", ""): [
        ("masks.gtpo_weights", "conflict | back", "conflict"),
    ],
    ("masks.test_a_run_ends_at_the_first_difference", ""): [
        ("masks._common_start", ".cumprod(-1).bool()", ".bool()"),
    ],
    ("masks.test_rolled_in_tokens_are_not_learned", ""): [
        ("masks.own_tokens", "place > rolled_in", "place >= rolled_in"),
    ],
    ("masks.test_what_was_bad_and_is_over_is_left", ""): [
        ("masks.near_policy", "advantage >= 0", "advantage < 0"),
    ],
    ("regularizers.test_dph_forward_is_supervised_learning_on_the_bases_answers", ""): [
        ("token_regularizers.dph_forward", "base_logp.detach(), logp", "logp, base_logp.detach()"),
    ],
    ("regularizers.test_dph_alpha_is_the_authors_formula", ""): [
        ("token_regularizers.dph_alpha", "1.0 - alpha", "alpha"),
    ],
    ("regularizers.test_the_convex_anchor_descends_both_divergences", ""): [
        ("token_regularizers.convex_anchor", "(1.0 - weight)", "weight"),
    ],
    ("regularizers.test_correlated_proxies_by_hand", ""): [
        ("token_regularizers.correlated_proxies", ".sum(-1)", ".mean(-1)"),
    ],
    ("regularizers.test_the_filter_by_hand", ""): [
        ("token_regularizers.filtered_logp", "log_law - torch.log1p(-removed)", "log_law"),
    ],
    ("regularizers.test_lp_reg_acts_where_it_is_chosen_and_below_the_filter", ""): [
        ("token_regularizers.lp_acts", "logp < proxy_logp", "logp > proxy_logp"),
    ],
    ("regularizers.test_entropy_by_hand", ""): [
        ("token_regularizers.token_entropy", "- ordered < top_p", "< top_p"),
    ],
    ("regularizers.test_siren_pulls_to_its_anchor_from_both_sides", ""): [
        ("token_regularizers.siren_level", "1.0 - share", "share"),
    ],
    ("regularizers.test_the_band_has_a_gradient_outside_and_none_inside", ""): [
        ("token_regularizers.entropy_band", "low * h - entropy", "entropy - low * h"),
    ],
    ("regularizers.test_the_multiplier_and_the_policy_see_each_other_as_constants", ""): [
        ("token_regularizers.constrained", "multiplier().detach()", "multiplier()"),
    ],
    ("regularizers.test_the_adaptive_coefficient_by_hand", ""): [
        (
            "token_regularizers.adaptive_coefficient",
            "coefficient + step, coefficient - step",
            "coefficient - step, coefficient + step",
        ),
    ],
    ("transforms.test_reward_transforms_by_hand", ""): [
        ("transforms.par", ".mean(-1)", ".sum(-1)"),
        ("transforms.lsc", "rewards - reference", "reference - rewards"),
    ],
    ("transforms.test_the_gaussian_quantile", ""): [
        ("transforms.gaussian_quantile", "+ z *", "- z *"),
    ],
    ("transforms.test_the_corrected_verdict_is_unbiased", ""): [
        ("transforms.unbiased_reward", "- false_positive)", "- false_negative)"),
    ],
    ("transforms.test_forward_weights_scale_the_clean_gradient", ""): [
        ("transforms.forward_weights", "false_negative - 1.0", "1.0 - false_negative"),
    ],
    ("transforms.test_a_constrained_advantage_by_hand", ""): [
        ("transforms.mixed_advantage", "/ (1.0 + weight)", ""),
    ],
    ("transforms.test_how_many_are_accepted_is_within_four_deviations", ""): [
        ("transforms.rejection_sampled", "/ beta", "* beta"),
    ],
    ("transforms.test_drawing_by_weight", ""): [
        ("transforms.resampled", "right=True", "right=False"),
    ],
    ("transforms.test_ches_by_hand", ""): [
        ("transforms.ches", "- up.square()", "- down.square()"),
    ],
    ("transforms.test_best_and_worst", ""): [
        ("transforms.best_worst", "rewards == x", "rewards != x"),
    ],
    ("transforms.test_pairs_above_a_margin", ""): [
        ("transforms.pairs_above", "> margin", ">= margin"),
    ],
    ("transforms.test_primes_loss_by_hand", ""): [
        ("reward_models.prime", "beta * seq_score", "-beta * seq_score"),
    ],
    ("transforms.test_rto_by_hand", ""): [
        ("reward_models.rto", "- kl *", "+ kl *"),
    ],
    ("transforms.test_ideal_points", ""): [
        ("reward_models.pal", "far - near", "near - far"),
    ],
}


def broken(module: str, function: str, old: str, new: str) -> types.ModuleType:
    """The module with the slip, executed anew under its name."""
    name = f"offrl.lm.losses.{module}"
    source = Path(str(import_module(name).__file__)).read_text()
    tree = ast.parse(source)
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    # The docstring may speak of the same thing.
    start = node.body[1].lineno - 1
    lines = source.splitlines(keepends=True)
    segment = "".join(lines[start : node.end_lineno])
    assert segment.count(old) == 1, f"{function} has {old!r} {segment.count(old)} times"
    lines[start : node.end_lineno] = [segment.replace(old, new)]
    made = types.ModuleType(name)
    exec(compile("".join(lines), name, "exec"), made.__dict__)
    return made


ALL = [(*slip, *test) for test, slips in FAULTS.items() for slip in slips]


@pytest.mark.parametrize(("where", "old", "new", "test", "argument"), ALL)
def test_every_slip_is_noticed(
    where: str, old: str, new: str, test: str, argument: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, function = where.partition(".")
    slip = broken(module, function, old, new)
    monkeypatch.setitem(sys.modules, slip.__name__, slip)
    monkeypatch.setattr(f"offrl.lm.losses.{module}", slip)
    tests, _, name = test.partition(".")
    path = HERE / f"test_lm_losses_{tests}.py"
    spec = importlib.util.spec_from_file_location(f"slip_{path.stem}", path)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    call = getattr(made, name)
    with pytest.raises(AssertionError):
        if not argument:
            call()
        else:
            call(bool(int(argument)) if argument.isdigit() else argument)
