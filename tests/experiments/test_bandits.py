"""Bandits find the best, log true propensities, and resume; interleaving finds the preferred."""

import numpy as np
import pytest
from scipy.special import betaln

from raysys.errors import UserError
from raysys.experiments.bandits import LinUCB, Thompson
from raysys.experiments.drafting import team_draft
from raysys.experiments.interleaving import judge_interleaving
from raysys.experiments.off_policy import LoggedRows, OffPolicySettings, evaluate_policy


def test_probabilities_of_two_are_exact():
    bandit = Thompson(["a", "b"])
    bandit.update([0] * 12 + [1] * 20, [1] * 6 + [0] * 6 + [1] * 15 + [0] * 5)
    # Beta(7, 7) and Beta(16, 6); of integers the probability has a closed form (Cook 2005)
    i = np.arange(16)
    terms = betaln(7 + i, 13) - np.log(6 + i) - betaln(1 + i, 6) - betaln(7, 7)
    assert bandit.probabilities()[1] == pytest.approx(np.exp(terms).sum(), abs=1e-6)


def test_integrated_and_counted_probabilities_agree():
    rng = np.random.default_rng(0)
    bandit = Thompson([f"i{n}" for n in range(10)], draws=40_000)
    bandit.update(rng.integers(0, 10, 300), rng.random(300) < 0.3)
    assert np.allclose(bandit._integrated(), bandit._counted(), atol=0.01)
    assert bandit.probabilities().sum() == pytest.approx(1)


@pytest.mark.parametrize("items", [5, 40])
def test_propensities_are_those_of_the_draws(items):
    bandit = Thompson([f"i{n}" for n in range(items)], floor=0.2 / items)
    bandit.update(np.arange(items), np.linspace(0, 1, items))
    chosen = [bandit.choose() for _ in range(2000)]
    assert min(c.propensities[0] for c in chosen) >= 0.2 / items
    share = np.bincount([c.arms[0] for c in chosen], minlength=items) / 2000
    assert np.allclose(share, bandit.probabilities(), atol=0.04)
    # the inverse of a true propensity averages to the number of arms
    assert np.mean([1 / c.propensities[0] for c in chosen]) == pytest.approx(items, rel=0.1)


def test_lists_hold_an_item_once():
    bandit = Thompson(["a", "b", "c"])
    choice = bandit.choose(3)
    assert sorted(choice.arms) == [0, 1, 2] and choice.propensities[-1] == 1
    with pytest.raises(UserError, match="4 slots for 3 arms"):
        bandit.choose(4)
    never = Thompson([f"i{n}" for n in range(30)], draws=1)
    assert len(set(never.choose(30).arms)) == 30


def test_thompson_finds_the_best_and_its_log_values_every_arm():
    """Regret far below that of even shares; each arm's true rate within IPS's interval."""
    rates = np.array([0.1, 0.15, 0.3])
    rng = np.random.default_rng(1)
    bandit = Thompson(["a", "b", "c"], floor=0.03)
    arms, propensities, rewards = [], [], []
    for _ in range(150):  # batches, as a log is read
        batch = [bandit.choose() for _ in range(10)]
        shown = np.array([c.arms[0] for c in batch])
        earned = rng.random(10) < rates[shown]
        bandit.update(shown, earned)
        arms.append(shown)
        rewards.append(earned)
        propensities.append([c.propensities[0] for c in batch])
    arm, reward = np.concatenate(arms), np.concatenate(rewards).astype(float)
    regret = (rates.max() - rates[arm]).sum()
    assert regret < 0.3 * len(arm) * (rates.max() - rates.mean())
    assert bandit.probabilities().argmax() == 2
    for each, rate in enumerate(rates):
        rows = LoggedRows(
            reward, np.concatenate(propensities), (arm == each) * 1.0, np.arange(len(arm))
        )
        found = evaluate_policy(rows, ["snips"], OffPolicySettings(resamples=300))["snips"]
        assert found.interval.low <= rate <= found.interval.high


def test_linucb_learns_a_context_and_explores_as_it_says():
    rng = np.random.default_rng(2)
    truth = np.array([0.8, -0.5, 0.3])
    bandit = LinUCB(["x", "y", "z"], explore=0.1, width=0.5)
    gaps = []
    for _ in range(400):
        features = rng.normal(size=(6, 3))
        choice = bandit.choose(features)
        value = features @ truth
        gaps.append(value.max() - value[choice.arms[0]])
        bandit.update(features[choice.arms], value[choice.arms] + rng.normal(0, 0.1, 1))
        assert choice.propensities[0] in (pytest.approx(0.1 / 6), pytest.approx(0.9 + 0.1 / 6))
    assert np.mean(gaps[200:]) < 0.15 * 2  # a tenth of the choices are even
    estimate = np.linalg.solve(bandit.precision, bandit.moment)
    assert np.allclose(estimate, truth, atol=0.05)


def test_many_arms_keep_their_distribution_between_updates_and_through_a_restart(tmp_path):
    bandit = Thompson([f"arm {at}" for at in range(30)], seed=5)  # counted, not integrated
    bandit.choose()
    bandit.choose()
    bandit.save(tmp_path)
    restored = Thompson.load(tmp_path)
    for _ in range(3):
        one, other = bandit.choose(2), restored.choose(2)
        assert one.arms.tolist() == other.arms.tolist()
        assert one.propensities.tolist() == other.propensities.tolist()
        bandit.update(one.arms, [1.0, 0.0])
        restored.update(one.arms, [1.0, 0.0])


@pytest.mark.parametrize("kind", [Thompson, LinUCB])
def test_a_restored_bandit_goes_on(tmp_path, kind):
    features = np.random.default_rng(0).normal(size=(8, 4))
    bandit = kind(list("abcd"), seed=5)
    args = () if kind is Thompson else (features,)

    def step(one):
        choice = one.choose(*args, 2)
        seen = choice.arms if kind is Thompson else features[choice.arms]
        one.update(seen, np.array([1.0, 0.0]))
        return choice.arms.tolist(), choice.propensities.tolist()

    for _ in range(5):
        step(bandit)
    bandit.save(tmp_path)
    restored = kind.load(tmp_path)
    assert [step(bandit) for _ in range(10)] == [step(restored) for _ in range(10)]
    with pytest.raises(UserError, match="state of a"):
        (LinUCB if kind is Thompson else Thompson).load(tmp_path)
    with pytest.raises(UserError, match="no bandit"):
        kind.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Thompson(["a", "a"]), "each once"),
        (lambda: Thompson(["a", "b"], floor=0.5), "not below 1"),
        (lambda: Thompson(["a"], prior=(0, 1)), "above 0"),
        (lambda: Thompson(["a"]).update([0], [2]), r"in \[0, 1\]"),
        (lambda: LinUCB(["a"], explore=0), "not within"),
    ],
)
def test_bad_bandits_are_named(make, told):
    with pytest.raises(UserError, match=told):
        make()


def test_team_draft_is_fair_and_repeatable():
    first, second = list("abcdef"), list("badcxy")
    teams = []
    for number in range(2000):
        shown, team = team_draft(first, second, 6, salt="x", request_id=f"r{number}")
        assert len(set(shown)) == 6 and abs(int(team.sum()) - 3) == 0
        teams.append(team[0])
        best = {0: first, 1: second}
        for at, (item, side) in enumerate(zip(shown, team, strict=True)):
            left = [each for each in best[int(side)] if each not in shown[:at]]
            assert item == left[0]
    assert np.mean(teams) == pytest.approx(0.5, abs=0.04)
    assert (
        team_draft(first, second, 6, salt="x", request_id="r1")[0]
        == (team_draft(first, second, 6, salt="x", request_id="r1")[0])
    )
    shown, _ = team_draft(["a"], ["a", "b"], 5, salt="x", request_id="r")
    assert sorted(shown) == ["a", "b"]


def clicks(preference, requests=3000, users=400, seed=0):
    """Lists of six by team draft; clicks prefer the second ranking's items by a factor."""
    rng = np.random.default_rng(seed)
    team = np.array([rng.permutation([0, 0, 0, 1, 1, 1]) for _ in range(requests)]).ravel()
    user = np.repeat(rng.integers(0, users, requests), 6)
    keen = rng.gamma(1, 0.1, users)[user]
    clicked = rng.random(len(team)) < np.minimum(keen * np.where(team == 1, preference, 1), 1)
    return team, clicked, np.repeat(np.arange(requests), 6), user


@pytest.mark.parametrize("analysis", ["fixed", "sequential"])
def test_interleaving_finds_the_preferred_and_no_other(analysis):
    found = judge_interleaving(*clicks(1.5), analysis=analysis)
    assert found.low > 0 and found.wins[1] > found.wins[0] and found.p_value < 0.05
    assert found.sentence.startswith("The second ranking is preferred")
    alarms = [
        judge_interleaving(*clicks(1.0, 400, 100, seed), analysis=analysis).p_value <= 0.05
        for seed in range(120)
    ]
    assert np.mean(alarms) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 120)
    with pytest.raises(UserError, match="fewer than two users"):
        judge_interleaving(*(each[:6] for each in clicks(1.0)))
