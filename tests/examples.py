"""How many examples a property is tried on: in the gate, and by `make fuzz`."""

from hypothesis import settings

USUAL = 100
"""What a property is tried on in the gate, unless it says otherwise."""


def examples(usual: int) -> int:
    """`usual` in the gate, and as many times more elsewhere as the other properties get there."""
    return usual * settings().max_examples // USUAL
