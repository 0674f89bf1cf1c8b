"""Whether anything but the content tells right candidates from wrong ones.

    python models/recipe/leaks.py STORE

STORE is what `swift-edge collect` or `swift-edge eval` made of a model's candidates. Prints the within-problem AUROC of
a bag of words (an L2 logistic regression on the counts of words, digits and signs, fitted on half of the problems and
measured on the others) and of length: 0.5 is chance.
"""

import re
from collections import Counter

import click
import numpy as np

from swift_edge.scoring import within_problem_auroc
from swift_edge.system.extras import import_extra
from swift_edge.training import Store

WORDS = 600
PENALTY = 1e-3


@click.command(help=__doc__)
@click.argument("store")
def main(store: str) -> None:
    """Measure and print."""
    candidates = Store.open(store).candidates
    bags = [Counter(re.findall(r"[A-Za-z]+|\d|\S", candidate.text)) for candidate in candidates]
    correct = np.array([candidate.correct for candidate in candidates])
    problems = np.array([candidate.problem for candidate in candidates])
    lengths = np.array([candidate.n_tokens for candidate in candidates])
    words = [word for word, _ in Counter(word for bag in bags for word in bag).most_common(WORDS)]
    counts = np.array([[bag[word] for word in words] for bag in bags], np.float64)  # [c, words]
    counts = (counts - counts.mean(axis=0)) / (counts.std(axis=0) + 1e-9)
    fitted = problems % 2 == 0
    signs = np.where(correct[fitted], 1.0, -1.0)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (counts[fitted] @ weights[1:] + weights[0])
        slopes = -signs / (1 + np.exp(margins)) / len(signs)
        gradient = np.concatenate([[slopes.sum()], counts[fitted].T @ slopes + PENALTY * weights[1:]])
        return np.logaddexp(0, -margins).mean() + PENALTY / 2 * weights[1:] @ weights[1:], gradient

    optimize = import_extra("scipy.optimize", "leaks.py", "train")
    weights = optimize.minimize(loss, np.zeros(len(words) + 1), jac=True, method="L-BFGS-B").x
    told = within_problem_auroc(counts[~fitted] @ weights[1:], correct[~fitted], problems[~fitted])
    click.echo(f"bag of words, within-problem AUROC: {told:.3f}")
    click.echo(f"shortest, within-problem AUROC:     {within_problem_auroc(-lengths, correct, problems):.3f}")


if __name__ == "__main__":
    main()
