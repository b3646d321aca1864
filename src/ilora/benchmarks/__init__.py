"""Named benchmarks: `mini8` makes its rows, the others read a folder that the user has, or the hub."""

from ilora.benchmarks import mini, streams, trace
from ilora.benchmarks.base import BENCHMARKS, Generator, Stream

__all__ = ["BENCHMARKS", "Generator", "Stream", "mini", "streams", "trace"]
