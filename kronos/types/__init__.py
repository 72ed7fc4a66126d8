"""The values that Kronos takes and returns, and the protocols that a program may implement.

Values are frozen and slotted dataclasses without behaviour of their own. Times are timezone-aware
UTC datetimes. Vectors are float32 NumPy arrays of unit length. `Embedder` (or `AsyncEmbedder`) and
`VectorIndex` are the only plug points.

Every annotation can be resolved at run time: `typing.get_type_hints` works on each value.
"""

from kronos.types.arrays import Keys, Vectors
from kronos.types.memories import (
    DuplicateGroup,
    JsonValue,
    Link,
    Memory,
    Metadata,
    NewMemory,
    OnConflict,
    Step,
    Version,
)
from kronos.types.protocols import AsyncEmbedder, Embedder, VectorIndex
from kronos.types.reports import (
    CompactReport,
    Problem,
    Progress,
    ProgressCallback,
    RecoveryReport,
    Report,
    Stats,
    TuneReport,
)
from kronos.types.search import Explanation, Hit, Hits, PlanStep, SearchMode
from kronos.types.spaces import (
    Failure,
    Job,
    JobState,
    OnModelChange,
    ReindexPlan,
    ReindexReport,
    Space,
    SpaceState,
    SpaceStats,
)

__all__ = [
    "AsyncEmbedder",
    "CompactReport",
    "DuplicateGroup",
    "Embedder",
    "Explanation",
    "Failure",
    "Hit",
    "Hits",
    "Job",
    "JobState",
    "JsonValue",
    "Keys",
    "Link",
    "Memory",
    "Metadata",
    "NewMemory",
    "OnConflict",
    "OnModelChange",
    "PlanStep",
    "Problem",
    "Progress",
    "ProgressCallback",
    "RecoveryReport",
    "ReindexPlan",
    "ReindexReport",
    "Report",
    "SearchMode",
    "Space",
    "SpaceState",
    "SpaceStats",
    "Stats",
    "Step",
    "TuneReport",
    "VectorIndex",
    "Vectors",
    "Version",
]
