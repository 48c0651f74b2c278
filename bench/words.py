"""Common short words, most of them one token in any English vocabulary, texts of so many tokens made of them, things for stories."""

from __future__ import annotations

import random

_COMMON = (
    "able about above across added afraid after again album allow alone along already always another anything apple around "
    "asked away bad ball band bank bear because bed before began behind being best better big bird black blue boat book both "
    "box boy bright bring brother built button cake called came candy car careful cat chair child city clean clear close "
    "clothes cold color could country day decided deep different dinner dog door down dream each early eat egg end enough "
    "even every excited eyes face fall family far farm fast favorite feel felt few field find fire first fish five floor "
    "flower fly follow food forest forever found four friend front full fun game garden gave girl give glad good grass great "
    "green ground group grow"
)
WORDS = tuple(_COMMON.split())
THINGS = ("ball", "kite", "boat", "cake", "doll", "book", "flower", "hat", "stick", "box", "apple", "drum")


def seeded_words(num_tokens: int, *seed: object) -> str:
    """About `num_tokens` tokens of text: as many words, the same for the same seed."""
    rng = random.Random("/".join(map(str, seed)))
    return " ".join(rng.choices(WORDS, k=max(1, num_tokens)))
