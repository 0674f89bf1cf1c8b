"""Write coin flip problems, after their definition: a coin is heads up, people flip it or do not, is it still heads up?

    python tests/bench/coin_flips.py coinflip.jsonl [--rows 500] [--people 4] [--seed 0]
    swift-edge collect -m DIR --data coinflip.jsonl --benchmark coinflip --out STORE

500 rows of four people are as many as the original has; the names are other ones. The same seed gives the same rows.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

_NAMES = (
    "Ada Alma Amir Anouk Arne Beata Bilal Boris Carla Chidi Clara Dario Delia Dmitri Edda Elif Emeka Enzo Esra Fabio "
    "Farah Finn Flora Gerd Gita Goran Hana Hugo Ida Igor Imani Inga Ivan Jana Jiro Jonas Kai Karla Kofi Lars Leila "
    "Lena Luis Mads Maja Malik Mira Nadia Nils Nora Olga Omar Otto Pablo Petra Priya Quentin Rafa Rania Ravi Rosa "
    "Samir Selma Sven Tariq Tessa Thea Timo Uma Ursula Vera Viggo Wim Xenia Yara Yusuf Zora Zubin"
)
NAMES = _NAMES.split()


def problems(rows: int, people: int, seed: int) -> Iterator[dict[str, str]]:
    """Different problems, in each of which everybody flips the coin as likely as not."""
    # Of a generator only random() is the same in every version of Python.
    draw = random.Random(seed).random
    written: set[str] = set()
    while len(written) < rows:
        drawn = sorted((draw(), name) for name in NAMES)[:people]
        flips = [draw() < 0.5 for _ in drawn]
        deeds = [
            f"{name} {'flips' if flip else 'does not flip'} the coin."
            for (_, name), flip in zip(drawn, flips, strict=True)
        ]
        question = " ".join(["A coin is heads up.", *deeds, "Is the coin still heads up?"])
        if question not in written:
            written.add(question)
            yield {"question": question, "answer": "no" if sum(flips) % 2 else "yes"}


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--people", type=int, default=4, choices=range(1, len(NAMES) + 1), metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not 1 <= arguments.rows <= 10**6 or (arguments.people == 1 and arguments.rows > len(NAMES)):
        parser.error("--rows: so many different problems are not there")
    lines = [json.dumps(problem) + "\n" for problem in problems(arguments.rows, arguments.people, arguments.seed)]
    arguments.out.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
