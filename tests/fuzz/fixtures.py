"""What targets share: the smallest models of the repository, and a fit that ends at once."""

from pathlib import Path
from typing import Final

from swift_edge.training import FitOptions

ROOT: Final = Path(__file__).parents[2]
STORIES: Final = ROOT / "models" / "stories260k"
ADDITION: Final = ROOT / "tests" / "data" / "addition-gpt2-h1_l1"
FIT: Final = FitOptions(weight_decay=0.03, max_iterations=2, patience=1, token_statistics=(), prefixes=1)
