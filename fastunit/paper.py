"""The networks of the UNIT paper's release (2017), under that release's names."""

from fastunit.models.unit2017 import COCOResGen, COCOResGen2
from fastunit.models.unit2017_discriminators import COCODis, COCOMsDis, COCOSharedDis

__all__ = ["COCODis", "COCOMsDis", "COCOResGen", "COCOResGen2", "COCOSharedDis"]
