"""Ablations of the papers as programs: from a base task to the members of a study."""

from simclr.tasks.studies.ablation import Ablation, Claim
from simclr.tasks.studies.v1 import V1
from simclr.tasks.studies.v2 import V2

STUDIES: dict[str, Ablation] = {**V1, **V2}

__all__ = ["STUDIES", "V1", "V2", "Ablation", "Claim"]
