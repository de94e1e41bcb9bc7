"""Writes growthbook.json: what GrowthBook's gbstats 0.8.0 says of the users made here.

That version asks for numpy<2, so it lives in an environment of its own:

    python -m venv gb && gb/bin/pip install gbstats==0.8.0
    gb/bin/python tests/experiments/growthbook_figures.py

The gbstats that fits our pins (0.2.1) is compared with live in test_growthbook.py.
"""

import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ALPHA, TUNED_FOR = 0.05, 3000


def users(seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Two arms: revenue, clicks, impressions, and revenue of before. Legacy draws never change."""
    rng = np.random.RandomState(seed)
    arms = {}
    for arm, (n, lift) in {"control": (900, 1.0), "treatment": (1100, 1.12)}.items():
        taste = rng.gamma(2.0, 1.0, n)
        impressions = 1 + rng.poisson(5 * taste)
        arms[arm] = {
            "revenue": rng.gamma(1.5, taste * lift),
            "before": rng.gamma(1.5, taste),
            "impressions": impressions.astype(float),
            "clicks": rng.binomial(impressions, 0.1 * lift).astype(float),
            "bought": (rng.random_sample(n) < 0.2 * lift).astype(float),
        }
    return arms


def main() -> None:
    from gbstats.frequentist.tests import (
        FrequentistConfig,
        SequentialConfig,
        SequentialTwoSidedTTest,
        TwoSidedTTest,
    )
    from gbstats.models.statistics import (
        ProportionStatistic,
        RatioStatistic,
        RegressionAdjustedStatistic,
        SampleMeanStatistic,
        compute_theta,
    )
    from gbstats.utils import check_srm

    def mean(x):
        return SampleMeanStatistic(n=len(x), sum=x.sum(), sum_squares=(x**2).sum())

    def ratio(arm):
        m, d = arm["clicks"], arm["impressions"]
        return RatioStatistic(
            n=len(m), m_statistic=mean(m), d_statistic=mean(d), m_d_sum_of_products=(m * d).sum()
        )

    def adjusted(arm, theta):
        post, pre = arm["revenue"], arm["before"]
        return RegressionAdjustedStatistic(
            n=len(post), post_statistic=mean(post), pre_statistic=mean(pre),
            post_pre_sum_of_products=(post * pre).sum(), theta=theta,
        )  # fmt: skip

    found = []
    for seed in range(5):
        arms = users(seed)
        control, treatment = arms["control"], arms["treatment"]
        theta = compute_theta(adjusted(control, 0), adjusted(treatment, 0))
        pairs = {
            "revenue": (mean(control["revenue"]), mean(treatment["revenue"])),
            "bought": tuple(
                ProportionStatistic(n=len(a["bought"]), sum=a["bought"].sum())
                for a in (control, treatment)
            ),
            "clicks_per_impression": (ratio(control), ratio(treatment)),
            "revenue_cuped": (adjusted(control, theta), adjusted(treatment, theta)),
        }
        for metric, pair in pairs.items():
            for kind in ("relative", "absolute"):
                for analysis in ("fixed", "sequential"):
                    if analysis == "fixed":
                        config = FrequentistConfig(alpha=ALPHA, difference_type=kind)
                        test = TwoSidedTTest(*pair, config)
                    else:
                        config = SequentialConfig(
                            alpha=ALPHA, difference_type=kind, sequential_tuning_parameter=TUNED_FOR
                        )
                        test = SequentialTwoSidedTTest(*pair, config)
                    result = test.compute_result()
                    found.append(
                        {
                            "seed": seed, "metric": metric, "kind": kind, "analysis": analysis,
                            "value": float(result.expected), "low": float(result.ci[0]),
                            "high": float(result.ci[1]), "p_value": float(result.p_value),
                            "theta": float(theta),
                        }
                    )  # fmt: skip
    srm = [
        {"counts": c, "shares": s, "p_value": float(check_srm(c, s))}
        for c, s in (
            ([500, 510], [0.5, 0.5]), ([900, 1100], [0.5, 0.5]), ([310, 290, 420], [0.3, 0.3, 0.4]),
        )
    ]  # fmt: skip
    text = json.dumps({"gbstats": "0.8.0", "effects": found, "sample_ratios": srm}, indent=1)
    (HERE / "growthbook.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
