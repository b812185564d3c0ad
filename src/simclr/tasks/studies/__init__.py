"""The papers' ablations as programs: a base task -> {label: what is trained}."""

from simclr.tasks.studies.ablation import Ablation, Member, Then
from simclr.tasks.studies.v1 import V1
from simclr.tasks.studies.v2 import V2

STUDIES: dict[str, Ablation] = {**V1, **V2}

__all__ = ["STUDIES", "V1", "V2", "Ablation", "Member", "Then"]
