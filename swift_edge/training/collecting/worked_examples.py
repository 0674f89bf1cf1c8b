"""Worked examples of each benchmark, written for this purpose: none of them is a row of a benchmark.

Stores keep a hash of those that were shown, so that a changed one makes another store.
"""

from collections.abc import Mapping
from typing import Final, TypeAlias

Examples: TypeAlias = tuple[tuple[str, str], ...]
"""Questions with their answers."""

_WORD_PROBLEMS: Final[Examples] = (
    (
        "A baker sells rolls in bags of 6. On Monday she sold 14 bags, and on Tuesday 5 bags fewer. How many rolls did "
        "she sell on both days together?",
        "On Tuesday she sold 14 - 5 = 9 bags. On both days she sold 14 + 9 = 23 bags. These are 23 * 6 = 138 rolls. "
        "The final answer is \\boxed{138}.",
    ),
    (
        "Ilse had 52 stamps. She gave a quarter of them to her brother and bought 9 new ones. How many stamps does she "
        "have now?",
        "A quarter of 52 is 52 / 4 = 13. After giving them away she had 52 - 13 = 39 stamps. With the new ones she has "
        "39 + 9 = 48. The final answer is \\boxed{48}.",
    ),
    (
        "A ticket to the lake costs $4 for a child and $7 for an adult. How much does a family of 2 adults and 3 "
        "children pay?",
        "The adults pay 2 * 7 = 14 dollars. The children pay 3 * 4 = 12 dollars. Together they pay 14 + 12 = 26 "
        "dollars. The final answer is \\boxed{26}.",
    ),
    (
        "A train of 240 seats is 75% full. At the next station 38 people get off and 20 get on. How many people are on "
        "the train then?",
        "Before the station there are 240 * 0.75 = 180 people. After it there are 180 - 38 + 20 = 162. The final "
        "answer is \\boxed{162}.",
    ),
)

WORKED_EXAMPLES: Final[Mapping[str, Examples]] = {
    "gsm8k": _WORD_PROBLEMS,
    "svamp": _WORD_PROBLEMS,
    "math": (
        (
            "Find the sum of all values of $x$ for which $x^2 - 9x + 14 = 0$.",
            "We factor $x^2 - 9x + 14 = (x - 2)(x - 7)$. The solutions are $2$ and $7$, and their sum is $2 + 7 = 9$. "
            "The final answer is $\\boxed{9}$.",
        ),
        (
            "A fair coin is tossed three times. What is the probability of exactly two heads?",
            "There are $2^3 = 8$ outcomes, all equally likely. Exactly two heads are in $\\binom{3}{2} = 3$ of them. "
            "The final answer is $\\boxed{\\frac{3}{8}}$.",
        ),
        (
            "The legs of a right triangle have lengths $\\sqrt{5}$ and $\\sqrt{7}$. How long is its hypotenuse?",
            "By the Pythagorean theorem its square is $5 + 7 = 12$, so that its length is $\\sqrt{12} = 2\\sqrt{3}$. "
            "The final answer is $\\boxed{2\\sqrt{3}}$.",
        ),
        (
            "For which real numbers $t$ is $3t - 5 < 7$?",
            "Adding $5$ gives $3t < 12$. Dividing by $3$ gives $t < 4$. The final answer is $\\boxed{(-\\infty, 4)}$.",
        ),
    ),
    "aqua": (
        (
            "A shirt of $40 is sold at a discount of 15%. What does it cost?\n\n(A) $25\n(B) $30\n(C) $34\n(D) $36\n"
            "(E) $46",
            "The discount is 40 * 0.15 = 6 dollars. The shirt costs 40 - 6 = 34 dollars, which is option C. The final "
            "answer is \\boxed{C}.",
        ),
        (
            "A cyclist rides 18 km in 45 minutes. What is her speed in km/h?\n\n(A) 24\n(B) 13.5\n(C) 20\n(D) 27\n"
            "(E) 40",
            "45 minutes are 0.75 hours. Her speed is 18 / 0.75 = 24 km/h, which is option A. The final answer is "
            "\\boxed{A}.",
        ),
        (
            "The mean of five numbers is 12. Four of them are 8, 10, 15 and 16. What is the fifth?\n\n(A) 9\n(B) 10\n"
            "(C) 12\n(D) 13\n(E) 11",
            "The sum of all five is 5 * 12 = 60. The four have a sum of 8 + 10 + 15 + 16 = 49. The fifth is 60 - 49 = "
            "11, which is option E. The final answer is \\boxed{E}.",
        ),
        (
            "In how many ways can 4 people sit on 4 chairs in a row?\n\n(A) 16\n(B) 24\n(C) 4\n(D) 12\n(E) 256",
            "There are 4 people for the first chair, then 3, 2 and 1. These are 4 * 3 * 2 * 1 = 24 ways, which is "
            "option B. The final answer is \\boxed{B}.",
        ),
    ),
    "hellaswag": (
        (
            "Baking bread: A woman kneads dough on a floured table. She puts it into a bowl and ...\n\nWhich ending is "
            "the most likely one?\n\n(A) throws the bowl over the fence.\n(B) covers it with a towel to let it rise.\n"
            "(C) paints the bowl with a brush.\n(D) rides away on the dough.",
            "Dough rests after it was kneaded, so that it rises, and is covered for that. The other endings have "
            "nothing to do with baking. The final answer is \\boxed{B}.",
        ),
        (
            "Changing a tyre: A man has lifted the car with a jack. He ...\n\nWhich ending is the most likely one?\n\n"
            "(A) drives off at once.\n(B) waters the wheel.\n(C) plays the nuts on a drum.\n"
            "(D) unscrews the nuts and takes the wheel off.",
            "With the car lifted, the next step is to take off the wheel, for which its nuts are unscrewed. The final "
            "answer is \\boxed{D}.",
        ),
        (
            "Swimming: A boy stands at the edge of the pool and puts on his goggles. He ...\n\nWhich ending is the "
            "most likely one?\n\n(A) jumps into the water.\n(B) ties his skates.\n(C) climbs a snowy hill.\n"
            "(D) reads the pool to his friend.",
            "Whoever puts on goggles at a pool is about to swim. The final answer is \\boxed{A}.",
        ),
        (
            "Washing a dog: A girl fills a tub with warm water. The dog ...\n\nWhich ending is the most likely one?\n\n"
            "(A) drives the tub to town.\n(B) writes a letter.\n(C) is lifted into the tub.\n(D) is put on a shelf.",
            "The tub is filled so that the dog can be washed in it, so it comes into the tub. The final answer is "
            "\\boxed{C}.",
        ),
    ),
    "coinflip": (
        (
            "A coin is heads up. Wanda flips the coin. Emil does not flip the coin. Is the coin still heads up?",
            "The coin is flipped by Wanda, once. Once is an odd number of flips, so the coin is tails up. The final "
            "answer is \\boxed{no}.",
        ),
        (
            "A coin is heads up. Bruno flips the coin. Tilda flips the coin. Is the coin still heads up?",
            "The coin is flipped by Bruno and Tilda, twice. Twice is an even number of flips, so the coin is heads up. "
            "The final answer is \\boxed{yes}.",
        ),
        (
            "A coin is heads up. Lou does not flip the coin. Greta does not flip the coin. Is the coin still heads up?",
            "The coin is flipped by nobody. Zero is an even number of flips, so the coin is heads up. The final answer "
            "is \\boxed{yes}.",
        ),
        (
            "A coin is heads up. Anton flips the coin. Hedy flips the coin. Milan flips the coin. Is the coin still "
            "heads up?",
            "The coin is flipped by Anton, Hedy and Milan, three times. Three is an odd number of flips, so the coin "
            "is tails up. The final answer is \\boxed{no}.",
        ),
    ),
    "cruxeval": (
        (
            "```python\ndef f(words):\n    return [word[0] for word in words if len(word) > 2]\n```\n\n"
            "What does this call return?\n\n```python\nf(['oak', 'an', 'elm'])\n```",
            "'oak' has 3 letters and is kept, 'an' has 2 and is left out, 'elm' has 3 and is kept. Their first letters "
            "are 'o' and 'e'. The final answer is \\boxed{['o', 'e']}.",
        ),
        (
            "```python\ndef f(n, step):\n    total = 0\n    while n > 0:\n        total += n\n        n -= step\n"
            "    return total\n```\n\nWhat does this call return?\n\n```python\nf(7, 3)\n```",
            "n is 7, then 4, then 1, then -2, where the loop ends. The total is 7 + 4 + 1 = 12. The final answer is "
            "\\boxed{12}.",
        ),
        (
            "```python\ndef f(text):\n    return text.replace('a', '').upper()\n```\n\nWhat does this call return?\n\n"
            "```python\nf('banana!')\n```",
            "Without its a the text is 'bnn!'. In upper case that is 'BNN!'. The final answer is \\boxed{'BNN!'}.",
        ),
        (
            "```python\ndef f(prices, limit):\n    return {name: price for name, price in prices.items() if price < "
            "limit}\n```\n\nWhat does this call return?\n\n```python\nf({'pen': 2, 'ink': 9}, 5)\n```",
            "'pen' costs 2, which is less than 5, and stays. 'ink' costs 9, which is not, and goes. The final answer "
            "is \\boxed{{'pen': 2}}.",
        ),
    ),
}
"""The examples by the name of the benchmark, `options.MOST_SHOTS` each."""
