"""How good a pick is: every selector against every baseline on the same candidates, with intervals over problems."""
