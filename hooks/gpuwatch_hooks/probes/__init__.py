"""One family of measurements a file. A probe has a `name`, `install(recorder)`, and what it needs of:

    before(part)   just before an optimizer steps: the gradients are as it will use them
    after(part)    just after it stepped or was skipped
    remove()       when the hooks are taken out

and `sampled`, true where it does nothing at a step at which no family of statistics has its turn (`part.due`).

Both run inside the guard, each probe for itself: three faults switch that one off. Patches go through the session's ledger,
which takes them out again.
"""

from .autocast import AutocastProbe
from .clearing import ClearingProbe
from .clipping import ClippingProbe
from .gradients import GradientsProbe
from .groups import GroupsProbe
from .loss import LossProbe
from .loss_scale import LossScaleProbe
from .memory import MemoryProbe
from .modes import ModesProbe
from .phases import PhasesProbe
from .scalars import ScalarsProbe
from .second_moment import SecondMomentProbe
from .strays import StraysProbe
from .updates import UpdatesProbe
from .validation import ValidationProbe
from .weights import WeightsProbe

#: In the order in which they look at a step: gradients before anything that costs time, the copy of the weights last.
ORDER = (
    LossScaleProbe,
    GradientsProbe,
    ClippingProbe,
    LossProbe,
    ClearingProbe,
    ValidationProbe,
    StraysProbe,
    GroupsProbe,
    ModesProbe,
    MemoryProbe,
    AutocastProbe,
    PhasesProbe,
    WeightsProbe,
    SecondMomentProbe,
    UpdatesProbe,
    ScalarsProbe,
)
