"""Study, cell and stage as data: read, checked, changed, hashed.

What a study file needs is named here: `from studies.spec import Cell, Stage, Study`.
"""

from studies.spec.cell import Cell as Cell
from studies.spec.cell import Stage as Stage
from studies.spec.study import Study as Study
from studies.spec.sweep import Choices as Choices
from studies.spec.sweep import Range as Range
from studies.spec.sweep import Sweep as Sweep
