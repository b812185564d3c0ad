"""The papers' ablations as programs: a base task -> {label: what is trained}."""

from simclr.studies.ablation import Ablation, Member, Then
from simclr.studies.v1 import V1
from simclr.studies.v2 import V2

__all__ = ["STUDIES", "Ablation", "Member", "Then"]

STUDIES: dict[str, Ablation] = {**V1, **V2}
