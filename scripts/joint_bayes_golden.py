"""Writes shared/src/joint_bayes/golden.rs: a few steps of Joint Bayesian's expectation maximisation, person by person.

It does what the program does, but by the textbook: each person's vectors as one normal distribution of all their components, with
the posterior by solving its full covariance. The program sums up people with as many pictures instead.

    python3 scripts/joint_bayes_golden.py        (numpy 2.4.6)
"""

import pathlib

import numpy as np

TARGET = pathlib.Path(__file__).parent.parent / "shared/src/joint_bayes/golden.rs"
DIMENSION, PEOPLE, STEPS, RIDGE = 3, 12, 5, 1e-6


def vector(person, picture):
    own = [(person * 7 + at * 5 + person * person * at) % 13 for at in range(DIMENSION)]
    apart = [
        (person * 3 + picture * 11 + at * 2 + person * picture * (at + 1)) % 7 for at in range(DIMENSION)
    ]
    return np.array(own) / 8 + np.array(apart) / 16


def joint(between, within, count):
    """Covariance of `count` vectors of one person, one below the other."""
    return np.kron(np.ones((count, count)), between) + np.kron(np.eye(count), within)


def log_density(stacked, covariance):
    _, log_determinant = np.linalg.slogdet(2 * np.pi * covariance)
    return -0.5 * (log_determinant + stacked @ np.linalg.solve(covariance, stacked))


def step(people, between, within):
    likelihood, of_people, of_pictures = 0.0, np.zeros_like(between), np.zeros_like(within)
    for vectors in people:
        count = len(vectors)
        covariance = joint(between, within, count)
        likelihood += log_density(vectors.reshape(-1), covariance)
        # Covariance of the person's own vector with all that was seen of it.
        seen = np.tile(between, (1, count))
        own = seen @ np.linalg.solve(covariance, vectors.reshape(-1))
        posterior = between - seen @ np.linalg.solve(covariance, seen.T)
        of_people += np.outer(own, own) + posterior
        for one in vectors:
            of_pictures += np.outer(one - own, one - own) + posterior
    pictures = sum(len(vectors) for vectors in people)
    return likelihood / pictures, of_people / len(people), of_pictures / pictures


def score(one, other, between, within):
    """Twice the log-likelihood ratio, less what no vector changes."""
    both, zero = np.concatenate([one, other]), np.zeros(2 * DIMENSION)
    same = joint(between, within, 2)
    different = np.kron(np.eye(2), between + within)
    ratio = lambda stacked: log_density(stacked, same) - log_density(stacked, different)
    return 2 * (ratio(both) - ratio(zero))


def main():
    raw = [np.array([vector(person, n) for n in range(1 + person % 4)]) for person in range(PEOPLE)]
    mean = np.concatenate(raw).mean(axis=0)
    people = [vectors - mean for vectors in raw]
    means = np.array([vectors.mean(axis=0) for vectors in people])
    apart = np.concatenate([vectors - vectors.mean(axis=0) for vectors in people])
    ridged = lambda matrix: matrix + np.eye(DIMENSION) * np.trace(matrix) / DIMENSION * RIDGE
    between, within = ridged(means.T @ means / len(people)), ridged(apart.T @ apart / len(apart))
    likelihoods = []
    for _ in range(STEPS):
        likelihood, between, within = step(people, between, within)
        likelihoods.append(likelihood)
    likelihoods.append(step(people, between, within)[0])
    scores = [score(people[1][0], other, between, within) for other in (people[1][1], people[2][0])]
    constants = {
        "LIKELIHOODS": likelihoods,
        "MEAN": mean,
        "BETWEEN": between.reshape(-1),
        "WITHIN": within.reshape(-1),
        "SCORES": scores,
    }
    lines = ["//! What a few steps of the training come to, by `scripts/joint_bayes_golden.py`.", ""]
    for name, numbers in constants.items():
        numbers = [f"{number:.12e}" for number in numbers]
        head, line = f"pub(super) const {name}: [f64; {len(numbers)}] =", ", ".join(numbers)
        values = "\n".join(f"    {number}," for number in numbers)
        # As rustfmt has it.
        lines.append(f"{head} [{line}];" if len(head) + len(line) < 116 else f"{head} [\n{values}\n];")
    TARGET.write_text("\n".join(lines) + "\n")
    print(TARGET.read_text())


if __name__ == "__main__":
    main()
