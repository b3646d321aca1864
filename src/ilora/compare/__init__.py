"""`ilora compare`: runs side by side: intervals, paired differences, no ranking that the data do not carry."""

from ilora.compare.command import compare

__all__ = ["compare"]
